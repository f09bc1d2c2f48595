package guest

import (
	"bytes"
	"encoding/base64"
	"encoding/binary"
	"math"
	"strconv"
)

// appendLine appends the frame of a line whose data are within their bound and whose stream is one of the two. It writes
// the bytes that package json would, without looking at what a Line is made of each time: on an emulated processor that
// is most of what a line of output costs.
func appendLine(dst []byte, l Line) []byte {
	start := len(dst)
	dst = append(dst, 0, 0, 0, 0, byte(TypeLine), '{')
	dst = append(l.AppendFields(dst), '}')
	binary.BigEndian.PutUint32(dst[start:], uint32(len(dst)-start-lengthBytes))
	return dst
}

// AppendFields appends what package json writes between the braces of a line of which Decode has made sure that it is
// one.
func (l Line) AppendFields(dst []byte) []byte {
	dst = append(dst, `"seq":`...)
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
	return dst
}

// parseLine reads a body as appendLine writes it, with the data appended to room, which it returns with them. Of any other
// body, also one that package json takes for the same line, it says no. A guest that floods its host with lines makes the
// host do little else than this.
func parseLine(body, room []byte) (l Line, data []byte, ok bool) {
	rest, ok := bytes.CutPrefix(body, []byte(`{"seq":`))
	if !ok {
		return Line{}, room, false
	}
	if l.Seq, rest, ok = cutUint(rest); !ok || l.Seq == 0 {
		return Line{}, room, false
	}
	if rest, ok = bytes.CutPrefix(rest, []byte(`,"time_unix_ns":`)); !ok {
		return Line{}, room, false
	}
	at, rest, ok := cutUint(rest)
	if !ok || at > math.MaxInt64 {
		return Line{}, room, false
	}
	l.Time = int64(at)
	if rest, ok = bytes.CutPrefix(rest, []byte(`,"stream":"std`)); !ok {
		return Line{}, room, false
	}
	if after, is := bytes.CutPrefix(rest, []byte(`out"`)); is {
		l.Stream, rest = StreamStdout, after
	} else if after, is := bytes.CutPrefix(rest, []byte(`err"`)); is {
		l.Stream, rest = StreamStderr, after
	} else {
		return Line{}, room, false
	}
	data = room
	if after, has := bytes.CutPrefix(rest, []byte(`,"data":"`)); has {
		text, after, _ := bytes.Cut(after, []byte{'"'})
		// The decoder skips line breaks, which package json takes for no part of a text.
		if len(text) == 0 || bytes.ContainsAny(text, "\r\n") {
			return Line{}, room, false
		}
		var err error
		if data, err = base64.StdEncoding.AppendDecode(room, text); err != nil || len(data)-len(room) > MaxLine {
			return Line{}, room, false
		}
		l.Data, rest = data[len(room):len(data):len(data)], after
	}
	if after, has := bytes.CutPrefix(rest, []byte(`,"partial":true`)); has {
		l.Partial, rest = true, after
	}
	if after, has := bytes.CutPrefix(rest, []byte(`,"dropped":`)); has {
		if l.Dropped, rest, ok = cutUint(after); !ok {
			return Line{}, room, false
		}
	}
	if string(rest) != "}" {
		return Line{}, room, false
	}
	return l, data, true
}

// cutUint takes the number that b begins with, written the one way that JSON has for it.
func cutUint(b []byte) (n uint64, rest []byte, ok bool) {
	end := 0
	for end < len(b) && b[end] >= '0' && b[end] <= '9' {
		end++
	}
	if end > 1 && b[0] == '0' {
		return 0, b, false
	}
	n, err := strconv.ParseUint(string(b[:end]), 10, 64)
	return n, b[end:], err == nil
}

// plain tells whether appendLine knows how to write the line.
func (l Line) plain() bool {
	return (l.Stream == StreamStdout || l.Stream == StreamStderr) && len(l.Data) <= MaxLine
}
