package image

// Limits bound what an image may cost before it is refused. The zero value of a field means its default.
type Limits struct {
	LayerBytes int64 // uncompressed, of one layer; default 32 GiB
	ImageBytes int64 // uncompressed, of all layers; default 64 GiB
	BlobBytes  int64 // compressed, of all layers, as declared; default 32 GiB
	Entries    int   // of one layer, of all layers, and of the merged tree; default 1,000,000
	NameBytes  int64 // of all names, targets and attributes of an image; default 128 MiB. See names, too.
}

// Fixed bounds: those of the formats, or so far beyond any honest image that nobody needs to turn them.
const (
	maxDocument   = 4 << 20  // manifest or config
	maxLayers     = 128      // in one image
	maxPath       = 4096     // bytes of an entry's name
	maxDepth      = 256      // components of an entry's name, and levels of the merged tree
	maxLinks      = 40       // symbolic links followed to find one directory, as in the kernel
	maxZstdWindow = 32 << 20 // bytes of history that a zstd layer may ask for
	maxID         = 1<<32 - 2
	sectorSize    = 512
)

func (l Limits) withDefaults() Limits {
	l.LayerBytes = orDefault(l.LayerBytes, 32<<30)
	l.ImageBytes = orDefault(l.ImageBytes, 64<<30)
	l.BlobBytes = orDefault(l.BlobBytes, 32<<30)
	l.Entries = orDefault(l.Entries, 1_000_000)
	l.NameBytes = orDefault(l.NameBytes, 128<<20)
	return l
}

// names is how many bytes the names, targets and attributes of so many entries may have. Reading and merging
// holds them twice, within what a process may take by itself and for each entry; see confined.go.
func (l Limits) names(entries int) int64 { return min(l.NameBytes, 24<<20+64*int64(entries)) }

func orDefault[T int | int64](v, fallback T) T {
	if v == 0 {
		return fallback
	}
	return v
}
