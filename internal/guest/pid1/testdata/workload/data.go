package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"
)

// about is what there is to know of a path.
func about(path string) map[string]any {
	var st syscall.Stat_t
	if err := syscall.Stat(path, &st); err != nil {
		return map[string]any{"error": err.Error()}
	}
	var fs syscall.Statfs_t
	_ = syscall.Statfs(path, &fs)
	f := map[string]any{
		"mode": fmt.Sprintf("%06o", st.Mode), "owner": fmt.Sprintf("%d:%d", st.Uid, st.Gid),
		"type": fmt.Sprintf("%x", fs.Type), "bytes": int64(fs.Blocks) * fs.Bsize, "flags": fmt.Sprintf("%x", fs.Flags),
	}
	if entries, err := os.ReadDir(path); err == nil {
		names := []string{}
		for _, e := range entries {
			names = append(names, e.Name())
		}
		f["names"] = names
	} else if b, err := os.ReadFile(path); err == nil {
		f["content"] = string(b)
	} else {
		f["error"] = err.Error()
	}
	return f
}

// look prints what there is to know of paths, as one line of JSON.
func look(paths []string) {
	f := map[string]any{"env": os.Environ()}
	for _, path := range paths {
		f[path] = about(path)
	}
	out, _ := json.Marshal(f)
	fmt.Println(string(out))
}

// keep writes a file so that it survives anything, says so, and goes on writing until the machine is gone.
func keep(path, content string) {
	f, err := os.Create(path)
	if err == nil {
		_, err = f.WriteString(content)
	}
	if err == nil {
		err = errors.Join(f.Sync(), syncDir(filepath.Dir(path)))
	}
	if err != nil {
		fmt.Println("not kept:", err)
		os.Exit(1)
	}
	fmt.Println("kept")
	for n := 0; ; n++ {
		os.WriteFile(path+".more", make([]byte, 64<<10), 0o644)
		os.Remove(path + ".more")
	}
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}

// refused tries to change a read-only volume in every way that the workload's root has.
func refused(dir, disk string) {
	fmt.Println("file:", os.WriteFile(filepath.Join(dir, "x"), nil, 0o644) != nil)
	fmt.Println("remount:", syscall.Mount("", dir, "", syscall.MS_REMOUNT, "") != nil)
	f, err := os.OpenFile(disk, os.O_WRONLY, 0)
	if err == nil {
		_, err = f.WriteAt([]byte("x"), 0)
		err = errors.Join(err, f.Sync())
	}
	fmt.Println("disk:", err != nil)
}

// watch reads a bundle as JSON and as a directory, again and again, until the signal to read it for the last time. It
// prints how often it saw something that is no whole version, what it saw last, and how many signals came.
func watch(file, dir string) {
	hups := make(chan os.Signal, 64)
	signal.Notify(hups, syscall.SIGHUP)
	terms := make(chan os.Signal, 1)
	signal.Notify(terms, syscall.SIGTERM)
	var wrong, reads int
	var last string
	var once sync.Once
	for end := false; !end; {
		select {
		case <-terms:
			end = true
		default:
		}
		reads++
		var all map[string]string
		b, err := os.ReadFile(file)
		if err == nil {
			err = json.Unmarshal(b, &all)
		}
		if err != nil || all["a"] != all["b"] || all["a"] == "" {
			wrong++
		}
		last = all["a"]
		if whole, err := os.Readlink(filepath.Join(dir, "..data")); err != nil {
			wrong++
		} else {
			a, errA := os.ReadFile(filepath.Join(dir, whole, "a"))
			b, errB := os.ReadFile(filepath.Join(dir, whole, "b"))
			if errA == nil && errB == nil && string(a) != string(b) {
				wrong++
			}
		}
		once.Do(func() { fmt.Println("watching") })
		time.Sleep(time.Millisecond)
	}
	fmt.Printf("wrong %d, last %s, signals %d, some reads %v\n", wrong, strings.TrimSpace(last), len(hups), reads > 3)
}

// fillUntilError writes until the disk refuses, and prints how.
func fillUntilError(path string) {
	f, err := os.Create(path)
	for err == nil {
		_, err = f.Write(make([]byte, 1<<20))
		if err == nil {
			err = f.Sync()
		}
	}
	fmt.Println("refused:", err)
	time.Sleep(time.Second)
	fmt.Println("still here")
}
