package main

import (
	"context"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
)

// maxPages is how many pages a list may have: more than any server has of anything.
const maxPages = 10_000

// followPages makes one answer of all pages of a list, so that no command shows a part of it as the whole. A caller
// that asks for a page gets that one.
func followPages() connect.UnaryInterceptorFunc {
	return func(next connect.UnaryFunc) connect.UnaryFunc {
		return func(ctx context.Context, req connect.AnyRequest) (connect.AnyResponse, error) {
			asked, ok := req.Any().(interface {
				proto.Message
				GetPageSize() uint32
				GetPageToken() string
			})
			if !ok || asked.GetPageSize() != 0 || asked.GetPageToken() != "" {
				return next(ctx, req)
			}
			first, err := next(ctx, req)
			if err != nil {
				return nil, err
			}
			whole := first.Any().(proto.Message)
			defer setText(asked, "page_token", "")
			token := nextPage(whole)
			for n := 1; token != ""; n++ {
				if n == maxPages {
					return nil, fail(exitInternal, "", "the server's list has no end: there are more than %d pages", maxPages)
				}
				setText(asked, "page_token", token)
				res, err := next(ctx, req)
				if err != nil {
					return nil, err
				}
				page := res.Any().(proto.Message)
				proto.Merge(whole, page)
				token = nextPage(page)
			}
			setText(whole, "next_page_token", "")
			return first, nil
		}
	}
}

func nextPage(m proto.Message) string {
	if m, ok := m.(interface{ GetNextPageToken() string }); ok {
		return m.GetNextPageToken()
	}
	return ""
}

// setText sets a field of text, which m has.
func setText(m proto.Message, field protoreflect.Name, value string) {
	r := m.ProtoReflect()
	if f := r.Descriptor().Fields().ByName(field); f != nil {
		r.Set(f, protoreflect.ValueOfString(value))
	}
}
