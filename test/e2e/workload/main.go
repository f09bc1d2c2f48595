// Command workload is what the end-to-end tests run in microVMs: a web server that tells what it sees and
// does what it is told.
package main

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"syscall"
	"time"
)

func main() {
	if len(os.Args) > 1 && os.Args[1] == "exit" {
		code, err := strconv.Atoi(os.Args[2])
		if err != nil {
			panic(err)
		}
		fmt.Println("exiting as told, with", code)
		os.Exit(code)
	}
	run := serve
	if len(os.Args) > 1 && endings[os.Args[1]] != nil {
		run = endings[os.Args[1]]
	}
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "workload:", err)
		os.Exit(1)
	}
}

func serve() error {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	http.HandleFunc("GET /{$}", func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprintf(w, "version %s\n", os.Getenv("VERSION"))
	})
	http.HandleFunc("GET /self", self)
	boot := rand.Text()
	http.HandleFunc("GET /boot", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, boot) })
	if os.Getenv("FLOOD") != "" {
		go flood(boot)
	}
	if os.Getenv("PORTS") != "" {
		if err := servePorts(); err != nil {
			return err
		}
	}
	if os.Getenv("MODE") != "" {
		serveMode()
	}
	serveData()
	http.HandleFunc("GET /reach", reach)
	http.HandleFunc("GET /udp", askUDP)
	http.HandleFunc("GET /resolve", resolve)
	http.HandleFunc("GET /hash", hash)
	http.HandleFunc("GET /slow", slow)
	http.HandleFunc("GET /exit", func(_ http.ResponseWriter, r *http.Request) {
		code, _ := strconv.Atoi(r.FormValue("code"))
		fmt.Println("exiting on request, with", code)
		os.Exit(code)
	})
	server := &http.Server{Addr: ":8080", ReadHeaderTimeout: 5 * time.Second}
	failed := make(chan error, 1)
	go func() { failed <- server.ListenAndServe() }()
	fmt.Println("listening, version", os.Getenv("VERSION"))
	select {
	case err := <-failed:
		return err
	case <-ctx.Done():
	}
	fmt.Println("got SIGTERM, stopping")
	grace, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
	defer cancel()
	return server.Shutdown(grace)
}

// flood prints numbered lines, mostly a few at a time and now and then many at once.
func flood(boot string) {
	for n := 1; ; {
		burst := 20
		if n%7 == 0 {
			burst = 2000
		}
		for range burst {
			fmt.Println("flood", boot, n)
			n++
		}
		time.Sleep(100 * time.Millisecond)
	}
}

// self tells what the process got from the platform.
func self(w http.ResponseWriter, _ *http.Request) {
	wd, _ := os.Getwd()
	host, _ := os.Hostname()
	groups, _ := os.Getgroups()
	ips, _ := net.InterfaceAddrs()
	var addrs []string
	for _, a := range ips {
		addrs = append(addrs, a.String())
	}
	_ = json.NewEncoder(w).Encode(map[string]any{
		"args": os.Args, "env": os.Environ(), "cwd": wd, "hostname": host,
		"uid": os.Getuid(), "gid": os.Getgid(), "groups": groups, "addresses": addrs, "pid": os.Getpid(),
	})
}

// reach tries to connect and tells what happened.
func reach(w http.ResponseWriter, r *http.Request) {
	conn, err := net.DialTimeout("tcp", r.FormValue("addr"), time.Second)
	if err != nil {
		fmt.Fprintln(w, "no:", err)
		return
	}
	_ = conn.Close()
	fmt.Fprintln(w, "open")
}

func resolve(w http.ResponseWriter, r *http.Request) {
	ctx, cancel := context.WithTimeout(r.Context(), 5*time.Second)
	defer cancel()
	addrs, err := net.DefaultResolver.LookupHost(ctx, r.FormValue("name"))
	if err != nil {
		fmt.Fprintln(w, "no:", err)
		return
	}
	fmt.Fprintln(w, strings.Join(addrs, " "))
}

// hash is the SHA-256 of a file of the image.
func hash(w http.ResponseWriter, r *http.Request) {
	f, err := os.Open(r.FormValue("file"))
	if err != nil {
		http.Error(w, err.Error(), http.StatusNotFound)
		return
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	fmt.Fprintf(w, "%x\n", h.Sum(nil))
}

// slow answers in pieces over some seconds, to be under way while instances are replaced.
func slow(w http.ResponseWriter, r *http.Request) {
	for n := range 20 {
		if _, err := fmt.Fprintf(w, "piece %d\n", n); errors.Is(err, syscall.EPIPE) {
			return
		}
		w.(http.Flusher).Flush()
		select {
		case <-r.Context().Done():
			return
		case <-time.After(100 * time.Millisecond):
		}
	}
	fmt.Fprintln(w, "done")
}
