package erofs

import "strings"

// blocksOf is a list that grows without being copied, and whose elements stay where they are.
type blocksOf[T any] struct {
	blocks []*[listBlock]T
	count  uint32
}

const (
	listBits  = 9
	listBlock = 1 << listBits
)

// add appends v and gives its place.
func (l *blocksOf[T]) add(v T) uint32 {
	if l.count%listBlock == 0 {
		l.blocks = append(l.blocks, new([listBlock]T))
	}
	place := l.count
	l.count++
	*l.at(place) = v
	return place
}

func (l *blocksOf[T]) at(place uint32) *T { return &l.blocks[place>>listBits][place%listBlock] }

// text keeps strings, up to 4 GiB of them, in large pieces.
type text struct {
	builder strings.Builder // of the last piece
	pieces  []string
}

const (
	pieceBits = 16
	pieceLen  = 1 << pieceBits
)

// add keeps s and gives its place.
func (t *text) add(s string) uint32 {
	if len(t.pieces) == 0 || t.builder.Len()+len(s) > pieceLen {
		t.builder = strings.Builder{}
		t.builder.Grow(pieceLen)
		t.pieces = append(t.pieces, "")
	}
	place := uint32(len(t.pieces)-1)<<pieceBits | uint32(t.builder.Len())
	t.builder.WriteString(s)
	t.pieces[len(t.pieces)-1] = t.builder.String()
	return place
}

func (t *text) get(place uint32, size int) string {
	return t.pieces[place>>pieceBits][place&(pieceLen-1):][:size]
}
