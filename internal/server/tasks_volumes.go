package server

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"

	"connectrpc.com/connect"

	pb "github.com/pinnacehq/pinnace/internal/api/pinnace/v1"
	"github.com/pinnacehq/pinnace/internal/fleet"
	"github.com/pinnacehq/pinnace/internal/manifest"
)

// maxImagePart is the most that one part of an image has, in bytes.
const maxImagePart = 256 << 10

// portOf is the TCP port of a manifest that somebody means, by its name or its number. A number need not be declared.
func portOf(m *manifest.Manifest, port string) (uint32, error) {
	if p, ok := m.Ports[port]; ok {
		if p.Protocol != manifest.ProtocolTCP {
			return 0, refuse(connect.CodeInvalidArgument, "ports.%s of %s is %s; only TCP can be forwarded", port, m.Name, p.Protocol)
		}
		return uint32(p.Port), nil
	}
	n, err := strconv.ParseUint(port, 10, 16)
	if err != nil || n == 0 {
		return 0, refuse(connect.CodeNotFound, "%s has no port %q: name one of its manifest, or a number from 1 to 65535", m.Name, cut(port))
	}
	return uint32(n), nil
}

// SnapshotVolume has the host of a volume copy it, and puts the copy on record when it is there.
func (c *control) SnapshotVolume(ctx context.Context, req *connect.Request[pb.SnapshotVolumeRequest]) (*connect.Response[pb.SnapshotVolumeResponse], error) {
	name := req.Msg.GetSnapshot()
	v, err := c.volumeFor(req.Msg)
	if err != nil {
		return nil, c.onWire(ctx, err)
	}
	key := requestKey("snapshot", req.Msg.GetIdempotencyKey())
	_, repeated, err := once(ctx, c, key, func(p *fleet.SnapshotTaken) bool { return p.Volume == v.ID && p.Snapshot == name })
	if err != nil || repeated {
		return connect.NewResponse(&pb.SnapshotVolumeResponse{Volume: c.volumeNow(v.ID)}), err
	}
	switch {
	case !fleet.ValidSnapshot(name) || fleet.PlatformSnapshot(name):
		return nil, refuse(connect.CodeInvalidArgument, "%q cannot be the name of a snapshot: it is 1 to 63 of a-z, 0-9 and \"-\", and begins with neither \"-\" nor %q", cut(name), fleet.PlatformSnapshots)
	case v.HasSnapshot(name):
		return nil, refuse(connect.CodeAlreadyExists, "volume %s has a snapshot %s already", v.ID, name)
	case len(v.Snapshots) >= fleet.MaxSnapshots:
		return nil, refuse(connect.CodeFailedPrecondition, "volume %s has %d snapshots, which is the most; delete one", v.ID, len(v.Snapshots))
	}
	take := func() (*pb.TaskDone, error) {
		return c.do(ctx, v.Host, &pb.HostTask{What: &pb.HostTask_Snapshot{Snapshot: &pb.SnapshotTask{Volume: v.ID, Snapshot: name}}})
	}
	done, err := take()
	if connect.CodeOf(err) == connect.CodeAlreadyExists {
		// It was made for a request that nobody waited for until it was on record. Nobody knows how old it is.
		if err = c.deleteSnapshot(ctx, v, name); err == nil {
			done, err = take()
		}
	}
	if err != nil {
		return nil, err
	}
	size := done.GetVolume().GetSizeBytes()
	if err := c.ledger.append(ctx, actorOf(ctx), key, &fleet.SnapshotTaken{Volume: v.ID, Snapshot: name, SizeBytes: size}); err != nil {
		return nil, c.onWire(ctx, err)
	}
	return connect.NewResponse(&pb.SnapshotVolumeResponse{Volume: c.volumeNow(v.ID)}), nil
}

// deleteSnapshot has a host remove a snapshot; one that is not there is none that is left.
func (c *control) deleteSnapshot(ctx context.Context, v *fleet.Volume, name string) error {
	_, err := c.do(ctx, v.Host, &pb.HostTask{What: &pb.HostTask_Snapshot{Snapshot: &pb.SnapshotTask{Volume: v.ID, Snapshot: name, Delete: true}}})
	if connect.CodeOf(err) == connect.CodeNotFound {
		return nil
	}
	return err
}

// DeleteSnapshot removes a snapshot from its host, and then from the record.
func (c *control) DeleteSnapshot(ctx context.Context, req *connect.Request[pb.DeleteSnapshotRequest]) (*connect.Response[pb.DeleteSnapshotResponse], error) {
	name := req.Msg.GetSnapshot()
	v, err := c.volumeFor(req.Msg)
	if err != nil {
		return nil, c.onWire(ctx, err)
	}
	key := requestKey("delete-snapshot", req.Msg.GetIdempotencyKey())
	_, repeated, err := once(ctx, c, key, func(p *fleet.SnapshotDeleted) bool { return p.Volume == v.ID && p.Snapshot == name })
	if err != nil || repeated {
		return connect.NewResponse(&pb.DeleteSnapshotResponse{Volume: c.volumeNow(v.ID)}), err
	}
	if !v.HasSnapshot(name) {
		return nil, refuse(connect.CodeNotFound, "volume %s has no snapshot %q", v.ID, cut(name))
	}
	if err := c.deleteSnapshot(ctx, v, name); err != nil {
		return nil, err
	}
	if err := c.ledger.append(ctx, actorOf(ctx), key, &fleet.SnapshotDeleted{Volume: v.ID, Snapshot: name}); err != nil {
		return nil, c.onWire(ctx, err)
	}
	return connect.NewResponse(&pb.DeleteSnapshotResponse{Volume: c.volumeNow(v.ID)}), nil
}

// ExportVolume passes the image of a volume on. Who wanted it is on record before the first byte leaves.
func (c *control) ExportVolume(ctx context.Context, req *connect.Request[pb.ExportVolumeRequest], stream *connect.ServerStream[pb.ExportVolumeResponse]) error {
	v, err := c.volumeFor(req.Msg)
	if err != nil {
		return c.onWire(ctx, err)
	}
	if name := req.Msg.GetSnapshot(); name != "" && !v.HasSnapshot(name) {
		return refuse(connect.CodeNotFound, "volume %s has no snapshot %q", v.ID, cut(name))
	}
	if err := checkKey(req.Msg.GetIdempotencyKey()); err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	t, err := c.ask(ctx, v.Host, &pb.HostTask{What: &pb.HostTask_Export{Export: &pb.ExportTask{Volume: v.ID, Snapshot: req.Msg.GetSnapshot()}}})
	if err != nil {
		return err
	}
	started := false
	for {
		m, err := t.hear(ctx)
		if err != nil {
			return err
		}
		out := &pb.ExportVolumeResponse{}
		switch {
		case m.GetImageStart() != nil && !started:
			started = true
			key := requestKey("export", req.Msg.GetIdempotencyKey())
			err := c.ledger.append(ctx, actorOf(ctx), key, &fleet.VolumeExported{Volume: v.ID, Snapshot: req.Msg.GetSnapshot()})
			if err != nil {
				return c.onWire(ctx, err)
			}
			out.Message = &pb.ExportVolumeResponse_Start{Start: m.GetImageStart()}
		case m.GetImageData() != nil && started && len(m.GetImageData().GetData()) <= maxImagePart:
			out.Message = &pb.ExportVolumeResponse_Data{Data: m.GetImageData()}
		case m.GetImageEnd() != nil && started:
			return stream.Send(&pb.ExportVolumeResponse{Message: &pb.ExportVolumeResponse_End{End: m.GetImageEnd()}})
		default:
			return refuse(connect.CodeInternal, "host %s sends no image of the volume", v.Host)
		}
		if err := stream.Send(out); err != nil {
			return err
		}
	}
}

// ImportVolume has a host make a volume of an image, and binds it when it is whole and on the disk there.
func (c *control) ImportVolume(ctx context.Context, stream *connect.ClientStream[pb.ImportVolumeRequest]) (*connect.Response[pb.ImportVolumeResponse], error) {
	if !stream.Receive() {
		return nil, errors.Join(stream.Err(), refuse(connect.CodeInvalidArgument, "there is no image"))
	}
	start := stream.Msg().GetStart()
	if err := checkKey(start.GetIdempotencyKey()); err != nil {
		return nil, err
	}
	key := requestKey("import", start.GetIdempotencyKey())
	bound := &fleet.VolumeBound{
		Environment: start.GetEnvironment(), App: start.GetApp(), Name: start.GetName(), Ordinal: int(start.GetOrdinal()), SizeBytes: start.GetImage().GetSizeBytes(),
	}
	was, repeated, err := once(ctx, c, key, func(p *fleet.VolumeBound) bool {
		return p.Environment == bound.Environment && p.App == bound.App && p.Name == bound.Name && p.Ordinal == bound.Ordinal
	})
	if err != nil || repeated {
		return connect.NewResponse(&pb.ImportVolumeResponse{Volume: c.volumeNow(importedID(was))}), err
	}
	if bound.Volume, err = c.newID("vol"); err != nil {
		return nil, c.onWire(ctx, err)
	}
	c.ledger.read(func(st *fleet.State) { bound.Host, err = c.importTo(st, bound, start.GetHost()) })
	if err != nil {
		return nil, c.onWire(ctx, err)
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	c.imports.begin(bound.Volume)
	unknown := false // whether the log has it
	defer func() {
		if !unknown {
			c.imports.end(bound.Volume)
		}
	}()
	t, err := c.ask(ctx, bound.Host, &pb.HostTask{What: &pb.HostTask_Import{Import: &pb.ImportTask{Volume: bound.Volume, Image: start.GetImage()}}})
	if err != nil {
		return nil, err
	}
	sum, err := passImage(ctx, stream, t)
	if err != nil {
		return nil, err
	}
	for {
		m, err := t.hear(ctx)
		if err != nil {
			return nil, err
		}
		if m.GetDone() != nil {
			break
		}
	}
	bound.SHA256 = hex.EncodeToString(sum)
	if err := c.ledger.append(ctx, actorOf(ctx), key, bound); err != nil {
		// When the log does not know the volume, nobody will ever ask for it, and its host removes it. It may yet, unless it has
		// refused.
		unknown = !isRejected(err)
		c.log.WarnContext(ctx, "an imported volume was not bound, and is left over on its host", "volume", bound.Volume, "host", bound.Host, "error", err)
		return nil, c.onWire(ctx, err)
	}
	return connect.NewResponse(&pb.ImportVolumeResponse{Volume: c.volumeNow(bound.Volume)}), nil
}

// passImage passes the parts of an image on to a host, and returns the digest that its sender gives it.
func passImage(ctx context.Context, stream *connect.ClientStream[pb.ImportVolumeRequest], t *hostTask) ([]byte, error) {
	for stream.Receive() {
		m := &pb.ServeTaskResponse{ImageData: stream.Msg().GetData(), ImageEnd: stream.Msg().GetEnd()}
		if len(m.GetImageData().GetData()) > maxImagePart {
			return nil, refuse(connect.CodeInvalidArgument, "%d bytes in one part of the image; the most is %d", len(m.GetImageData().GetData()), maxImagePart)
		}
		if !t.tell(ctx, m) {
			_, err := t.hear(ctx) // why it does not listen any more
			if err == nil {
				err = refuse(connect.CodeUnavailable, "host %s takes no more of the image", t.host)
			}
			return nil, err
		}
		if end := m.GetImageEnd(); end != nil {
			return end.GetSha256(), nil
		}
	}
	if err := stream.Err(); err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	return nil, refuse(connect.CodeInvalidArgument, "the image was cut off; nothing was made of it")
}

// importTo is the host on which a volume is to be made of an image, or why it cannot be.
func (c *control) importTo(st *fleet.State, v *fleet.VolumeBound, wanted string) (string, error) {
	if _, err := environmentIn(st, v.Environment); err != nil {
		return "", err
	}
	switch {
	case !fleet.ValidName(v.App) || !fleet.ValidName(v.Name) || v.Ordinal >= fleet.MaxCount:
		return "", refuse(connect.CodeInvalidArgument, "%q, %d and %q are not app, ordinal and name of a volume", cut(v.App), v.Ordinal, cut(v.Name))
	case v.SizeBytes < fleet.MinVolume || v.SizeBytes > fleet.MaxVolume || v.SizeBytes%4096 != 0:
		return "", refuse(connect.CodeInvalidArgument, "an image of %d bytes is none of a volume: those have %s to %s, in steps of 4KiB", v.SizeBytes, sizeText(fleet.MinVolume), sizeText(fleet.MaxVolume))
	}
	if have := st.VolumeOf(v.Environment, v.App, v.Ordinal, v.Name); have != nil {
		return "", refuse(connect.CodeAlreadyExists, "%s/%d has a volume %s: %s. Detach that first: pinnace volumes detach %s", v.App, v.Ordinal, v.Name, have.ID, have.ID)
	}
	beside := ""
	for _, other := range st.Volumes(v.Environment) {
		if other.App == v.App && other.Ordinal == v.Ordinal && other.Attached() {
			beside = other.Host
		}
	}
	for _, i := range st.Instances(v.Environment, v.App) {
		if i.Ordinal == v.Ordinal && !i.Task {
			return "", refuse(connect.CodeFailedPrecondition, "%s/%d runs: stop it first, or scale it down", v.App, v.Ordinal)
		}
	}
	switch {
	case wanted != "" && beside != "" && wanted != beside:
		return "", refuse(connect.CodeFailedPrecondition, "the other volumes of %s/%d are on host %s, so that this one has to be there, too", v.App, v.Ordinal, beside)
	case wanted == "":
		wanted = beside
	}
	image := "an image of " + sizeText(v.SizeBytes)
	if wanted != "" {
		h, err := hostIn(st, wanted)
		if err == nil {
			err = lacksDisk(st, h, image, v.SizeBytes)
		}
		return wanted, err
	}
	hosts := slices.DeleteFunc(st.Hosts(), func(h *fleet.Host) bool {
		on, _ := c.observed.connected(h.ID, c.now())
		return !on || !h.DrainingAt.IsZero() || !st.Suits(h, v.Environment, v.App)
	})
	if len(hosts) == 0 {
		return "", refuse(connect.CodeUnavailable, "no host is connected that may run %s", v.App)
	}
	suitable := len(hosts)
	var err error
	hosts = slices.DeleteFunc(hosts, func(h *fleet.Host) bool {
		full := lacksDisk(st, h, image, v.SizeBytes)
		if full != nil {
			err = full
		}
		return full != nil
	})
	switch {
	case len(hosts) == 0 && suitable == 1:
		return "", err
	case len(hosts) == 0:
		return "", refuse(connect.CodeFailedPrecondition, "%d of %d hosts lack disk for %s\nhint: pinnace host list shows what is booked; delete volumes that are detached", suitable, len(st.Hosts()), image)
	}
	// Where the fewest volumes are; the first of several by its name.
	emptiest := slices.MinFunc(hosts, func(a, b *fleet.Host) int { return len(st.VolumesOn(a.ID)) - len(st.VolumesOn(b.ID)) })
	return emptiest.ID, nil
}

// volumeIn finds a volume of an environment by its id, a beginning of it that only one has, or what it is for.
func volumeIn(st *fleet.State, environment, ref string) (*fleet.Volume, error) {
	if _, err := environmentIn(st, environment); err != nil {
		return nil, err
	}
	var found []*fleet.Volume
	for _, v := range st.Volumes(environment) {
		switch {
		case v.ID == ref:
			return v, nil
		case ref != "" && len(ref) >= len("vol-0") && len(v.ID) > len(ref) && v.ID[:len(ref)] == ref,
			v.Attached() && ref == fmt.Sprintf("%s/%d", v.App, v.Ordinal), v.Attached() && ref == fmt.Sprintf("%s/%d/%s", v.App, v.Ordinal, v.Name):
			found = append(found, v)
		}
	}
	switch len(found) {
	case 1:
		return found[0], nil
	case 0:
		return nil, refuse(connect.CodeNotFound, "volume %q does not exist in %s: name an id, or APP/ORDINAL/NAME\nhint: pinnace volumes list -e %s", cut(ref), environment, environment)
	}
	return nil, refuse(connect.CodeInvalidArgument, "%q may be any of %d volumes: name an id, or APP/ORDINAL/NAME\nhint: pinnace volumes list -e %s", cut(ref), len(found), environment)
}

// aboutVolume is a request about one volume.
type aboutVolume interface {
	GetEnvironment() string
	GetVolume() string
}

// volumeFor finds the volume that a request is about, which is not to be removed.
func (c *control) volumeFor(req aboutVolume) (v *fleet.Volume, err error) {
	c.ledger.read(func(st *fleet.State) { v, err = volumeIn(st, req.GetEnvironment(), req.GetVolume()) })
	if err == nil && !v.DeletedAt.IsZero() {
		return nil, refuse(connect.CodeFailedPrecondition, "volume %s is being removed", v.ID)
	}
	return v, err
}

// importedID is the volume that a request made which is made again; empty when there is none.
func importedID(was *fleet.VolumeBound) string {
	if was == nil {
		return ""
	}
	return was.Volume
}
