package main

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"syscall"
)

// serveData answers what a test wants to know of volumes and secrets.
func serveData() {
	http.HandleFunc("POST /keep", keep)
	http.HandleFunc("GET /file", func(w http.ResponseWriter, r *http.Request) {
		b, err := os.ReadFile(r.FormValue("path"))
		answer(w, b, err)
	})
	http.HandleFunc("GET /env", func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.WriteString(w, os.Getenv(r.FormValue("name"))) // the test sees what is missing
	})
	http.HandleFunc("GET /size", func(w http.ResponseWriter, r *http.Request) {
		var fs syscall.Statfs_t
		err := syscall.Statfs(r.FormValue("path"), &fs)
		answer(w, fmt.Append(nil, int64(fs.Blocks)*fs.Bsize>>20), err)
	})
}

func answer(w http.ResponseWriter, b []byte, err error) {
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	_, _ = w.Write(b) // the test sees what is missing
}

// keep writes a file, and answers when it is on the disk.
func keep(w http.ResponseWriter, r *http.Request) {
	path := r.FormValue("path")
	f, err := os.Create(path)
	if err != nil {
		answer(w, nil, err)
		return
	}
	_, err = io.WriteString(f, r.FormValue("content"))
	err = errors.Join(err, f.Sync(), f.Close())
	if dir, dirErr := os.Open(filepath.Dir(path)); dirErr == nil {
		err = errors.Join(err, dir.Sync(), dir.Close())
	} else {
		err = errors.Join(err, dirErr)
	}
	answer(w, []byte("kept"), err)
}
