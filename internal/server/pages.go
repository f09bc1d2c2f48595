package server

import (
	"crypto/sha256"
	"encoding/base64"
	"slices"
	"strings"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
)

// Bounds of a page of a list: entries, and bytes behind which no further entry is added.
const (
	defaultPage = 500
	maxPage     = 1000
	pageBytes   = 1 << 20
)

// maxPageToken is longer than any token, in characters.
const maxPageToken = 2048

// pageRequest is the request for a list.
type pageRequest interface {
	proto.Message
	GetPageSize() uint32
	GetPageToken() string
}

// pageOf gives the page of a list that req asks for, and the token of the one after it, which is "" at the end.
//
// all is the whole list as it is now, in ascending order of key, which is unique and never changes for an entry. A token
// says behind which key to go on, not how many entries came before, so that nothing is skipped or shown twice when the
// list has changed meanwhile, or when another server answers.
func pageOf[R any, M proto.Message](req pageRequest, all []R, key func(R) string, build func(R) M) (page []M, next string, err error) {
	about := sameList(req)
	if token := req.GetPageToken(); token != "" {
		after, ok := readPageToken(token, about)
		if !ok {
			return nil, "", refuse(connect.CodeInvalidArgument, "page_token is none that this list gave; begin without one, and change nothing else of the request from page to page")
		}
		i, found := slices.BinarySearchFunc(all, after, func(r R, after string) int { return strings.Compare(key(r), after) })
		if found {
			i++
		}
		all = all[i:]
	}
	limit := int(req.GetPageSize())
	if limit == 0 {
		limit = defaultPage
	}
	limit = min(limit, maxPage)
	bytes := 0
	for i, r := range all {
		if len(page) == limit || bytes > pageBytes {
			return page, pageToken(about, key(all[i-1])), nil
		}
		m := build(r)
		bytes += proto.Size(m)
		page = append(page, m)
	}
	return page, "", nil
}

// listID tells which list a token belongs to.
type listID [8]byte

// sameList is equal for requests that differ in nothing but the page.
func sameList(req pageRequest) listID {
	m := proto.Clone(req)
	r := m.ProtoReflect()
	for _, name := range []protoreflect.Name{"page_size", "page_token"} {
		if f := r.Descriptor().Fields().ByName(name); f != nil {
			r.Clear(f)
		}
	}
	b, err := proto.MarshalOptions{Deterministic: true}.Marshal(m)
	if err != nil {
		b = nil // A request that came in can be written out again; if not, its name has to do.
	}
	sum := sha256.Sum256(append([]byte(r.Descriptor().FullName()+"\x00"), b...))
	return listID(sum[:8])
}

func pageToken(list listID, key string) string {
	return base64.RawURLEncoding.EncodeToString(append(list[:], key...))
}

func readPageToken(token string, list listID) (key string, ok bool) {
	if len(token) > maxPageToken {
		return "", false
	}
	b, err := base64.RawURLEncoding.DecodeString(token)
	if err != nil {
		return "", false
	}
	rest, ok := strings.CutPrefix(string(b), string(list[:]))
	return rest, ok && rest != ""
}
