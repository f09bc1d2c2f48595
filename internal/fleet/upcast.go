package fleet

import "fmt"

// An upcast is one version of an event type's payload that is stored somewhere, and is read as the next one.
type upcast struct {
	typ  string
	from uint16
}

// upcasters make the payload of the next version from that of an older one. Stored bytes never change, so an
// entry is never removed, and its golden file (testdata/events/TYPE.vN.json) neither. There is none yet: every
// type is at its first version.
var upcasters = map[upcast]func(payload []byte) ([]byte, error){}

// current brings a stored payload to the version that the code knows, one version after the other.
func current(typ string, version, want uint16, payload []byte) ([]byte, error) {
	for ; version < want; version++ {
		up := upcasters[upcast{typ, version}]
		if up == nil {
			return nil, fmt.Errorf("version %d of event type %q can't be read anymore: its upcaster is missing", version, typ)
		}
		next, err := up(payload)
		if err != nil {
			return nil, fmt.Errorf("read version %d of %s as version %d: %w", version, typ, version+1, err)
		}
		payload = next
	}
	if version != want {
		return nil, fmt.Errorf("version %d of event type %q is unknown: %w", version, typ, ErrNewer)
	}
	return payload, nil
}
