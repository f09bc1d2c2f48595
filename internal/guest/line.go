package guest

import (
	"encoding/base64"
	"encoding/binary"
	"strconv"
)

// appendLine appends the frame of a line whose data are within their bound and whose stream is one of the two. It writes
// the bytes that package json would, without looking at what a Line is made of each time: on an emulated processor that
// is most of what a line of output costs.
func appendLine(dst []byte, l Line) []byte {
	start := len(dst)
	dst = append(dst, 0, 0, 0, 0, byte(TypeLine))
	dst = append(dst, `{"seq":`...)
	dst = strconv.AppendUint(dst, l.Seq, 10)
	dst = append(dst, `,"time_unix_ns":`...)
	dst = strconv.AppendInt(dst, l.Time, 10)
	dst = append(dst, `,"stream":"`...)
	dst = append(dst, l.Stream...)
	dst = append(dst, '"')
	if len(l.Data) > 0 {
		dst = append(dst, `,"data":"`...)
		dst = base64.StdEncoding.AppendEncode(dst, l.Data)
		dst = append(dst, '"')
	}
	if l.Partial {
		dst = append(dst, `,"partial":true`...)
	}
	if l.Dropped > 0 {
		dst = append(dst, `,"dropped":`...)
		dst = strconv.AppendUint(dst, l.Dropped, 10)
	}
	dst = append(dst, '}')
	binary.BigEndian.PutUint32(dst[start:], uint32(len(dst)-start-lengthBytes))
	return dst
}

// plain tells whether appendLine knows how to write the line.
func (l Line) plain() bool {
	return (l.Stream == StreamStdout || l.Stream == StreamStderr) && len(l.Data) <= MaxLine
}
