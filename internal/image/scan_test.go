package image

import "io"

// scanReader scans a tar as it stands and keeps it nowhere.
func scanReader(src io.Reader, diffID string, limits Limits) (*index, error) {
	return scan(newReaderPieces(src), nowhere{new(notes)}, nil, diffID, limits, new(notes))
}
