// Package openapi is the description of the API for those who speak to it without our code: a document that tools read, and
// a page that people read. Both are generated from the protos by the plugin in generate.
package openapi

import (
	_ "embed"
	"net/http"
	"strings"
	"time"
)

// Document is the description in OpenAPI 3.1, as JSON.
//
//go:embed openapi.json
var Document string

// Page is the same for people, as HTML without scripts.
//
//go:embed openapi.html
var Page string

// Where the two are served.
const (
	DocumentPath = "/openapi.json"
	PagePath     = "/api"
)

// Handle serves both. They are the same for everyone and say nothing of what there is, so they need no token.
func Handle(mux *http.ServeMux) {
	mux.HandleFunc("GET "+DocumentPath, serve("application/json", Document))
	mux.HandleFunc("GET "+PagePath, serve("text/html; charset=utf-8", Page))
}

func serve(contentType, content string) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		h := w.Header()
		h.Set("Content-Type", contentType)
		h.Set("X-Content-Type-Options", "nosniff")
		h.Set("Content-Security-Policy", "default-src 'none'; style-src 'unsafe-inline'")
		http.ServeContent(w, r, "", time.Time{}, strings.NewReader(content))
	}
}
