package main

import (
	"bytes"
	"fmt"
	"net/http"
	"os"
	"sync/atomic"
	"time"
)

// modeFile tells a hostile init what this program was told to do.
const modeFile = "/run/hostile-mode"

// spinning and shouting are what serveMode has been asked for.
var spinning, shouting atomic.Bool

// serveMode lets a test say what the guest does: "quiet", "spin" its processor, or "flood" everything.
func serveMode() {
	http.HandleFunc("GET /mode", func(w http.ResponseWriter, r *http.Request) {
		mode := r.FormValue("is")
		spinning.Store(mode == "spin")
		shouting.Store(mode == "flood")
		if err := os.WriteFile(modeFile, []byte(mode), 0o600); err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		fmt.Fprintln(w, mode)
	})
	go func() {
		for {
			for spinning.Load() {
			}
			time.Sleep(50 * time.Millisecond)
		}
	}()
	go func() {
		block := bytes.Repeat([]byte("x\n"), 1000) // short lines cost most for what they are
		for {
			for shouting.Load() {
				_, _ = os.Stdout.Write(block)
			}
			time.Sleep(50 * time.Millisecond)
		}
	}()
}

// spew floods the output of a command.
func spew() error {
	block := bytes.Repeat([]byte("spew\n"), 1000)
	for range 2000 {
		if _, err := os.Stdout.Write(block); err != nil {
			return err
		}
	}
	return nil
}
