package image

import (
	"context"
	"io"
)

// LayerDrives is how many layers of an image are attached as drives of their own, so that the host's page
// cache is shared by the machines that run them. The layers above are partitions of one pack disk. It is
// constant: which drive a layer is on must not depend on the host.
const LayerDrives = 8

// Converter names the way from layers to metadata. It is part of an image's identity: whatever changes a
// byte of the metadata for the same layers must change it.
const Converter = "pinnace-erofs-3"

// A Source gives the blobs of one image, by digest only.
//
// Blob opens the blob with that digest. The size is what the manifest declares, for the source's own
// limits; the store counts and hashes what it reads and trusts neither. Blob is called from several
// goroutines at once, and reads must end when ctx does.
type Source interface {
	Blob(ctx context.Context, digest string, size int64) (io.ReadCloser, error)
}

// An Image is complete in the store: every layer verified, and the file system over them written.
type Image struct {
	ManifestDigest string   // "sha256:" and 64 hex digits, as given to Pull
	DiffIDs        []string // of the layers, lowest first
	Layers         []Layer  // in the order of DiffIDs
	Metadata       string   // path of the EROFS image, one device slot per layer
	MetadataSHA256 string   // 64 hex digits
	UUID           string   // of the file system, from Converter and DiffIDs
	Converter      string
	Config         Config
}

// A Layer is one uncompressed tar, unchanged.
type Layer struct {
	DiffID string // "sha256:" and 64 hex digits: the sha256 of the file
	Path   string
	Size   int64 // bytes
}

// Progress is how far one layer is. Bytes and Total are of the compressed blob.
type Progress struct {
	Layer  int // index in the image, from 0
	Layers int
	Digest string // of the blob
	DiffID string
	Bytes  int64
	Total  int64
	Cached bool // was in the store already, nothing is fetched
	Done   bool // verified and in the store
}

// A DiskSet is what a machine attaches to run an image: Metadata, then every drive, all read-only.
type DiskSet struct {
	Metadata string
	Drives   []Drive
	Layers   []DiskRef // one per layer, in the order of the metadata's device slots
}

// A Drive is one file to attach.
type Drive struct {
	Path string
	Pack bool // holds several layers, as GPT partitions
}

// A DiskRef says where a layer is.
type DiskRef struct {
	Drive     int // index in DiskSet.Drives
	Partition int // from 1; 0 when the layer is the whole drive
}
