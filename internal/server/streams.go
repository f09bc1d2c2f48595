package server

import "github.com/pinnacehq/pinnace/internal/fleet"

// streamOfSettings is what an event of volumes, of destroying and of quotas is about.
func streamOfSettings(p fleet.Payload) string {
	switch p := p.(type) {
	case *fleet.VolumeBound:
		return "volume/" + p.Volume
	case *fleet.VolumeGrown:
		return "volume/" + p.Volume
	case *fleet.VolumeDetached:
		return "volume/" + p.Volume
	case *fleet.VolumeDeleted:
		return "volume/" + p.Volume
	case *fleet.VolumeRemoved:
		return "volume/" + p.Volume
	case *fleet.SnapshotTaken:
		return "volume/" + p.Volume
	case *fleet.SnapshotDeleted:
		return "volume/" + p.Volume
	case *fleet.VolumeExported:
		return "volume/" + p.Volume
	case *fleet.AppDestroyed:
		return "env/" + p.Environment
	case *fleet.EnvironmentDestroyed:
		return "env/" + p.Environment
	case *fleet.QuotaSet:
		return "env/" + p.Environment
	case *fleet.RunStarted:
		return "instance/" + p.Instance
	case *fleet.RunStopped:
		return "instance/" + p.Instance
	default:
		return "other"
	}
}
