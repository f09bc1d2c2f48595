package image

import (
	"errors"
	"fmt"
)

var (
	// ErrRefused means that the image breaks a rule or a bound. Pulling it again gives the same answer;
	// the image has to be built differently.
	ErrRefused = errors.New("image refused")

	// ErrCorrupt means that the bytes of a blob are not those that the manifest names: the registry or
	// something on the way changed or cut them. Another attempt can succeed.
	ErrCorrupt = errors.New("blob is corrupt")
)

func refuse(format string, args ...any) error {
	return fmt.Errorf("%w: %w", ErrRefused, fmt.Errorf(format, args...))
}

func corrupt(format string, args ...any) error {
	return fmt.Errorf("%w: %w", ErrCorrupt, fmt.Errorf(format, args...))
}

// quote is for names out of an image: escaped, and no longer than a line of a message.
func quote(name string) string {
	const most = 200
	if len(name) > most {
		return fmt.Sprintf("%q... (%d bytes)", name[:most], len(name))
	}
	return fmt.Sprintf("%q", name)
}
