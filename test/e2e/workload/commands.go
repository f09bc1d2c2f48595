package main

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"maps"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Commands that run beside a workload, and tell what they see.
func init() {
	maps.Copy(endings, map[string]func() error{
		"terminal": terminal, "cat": cat, "yes": yes, "wait": wait, "count": count, "touch": touch, "check": check,
	})
}

// terminal tells which terminal it has and how large that is, at every change, and acts on lines: exit N.
func terminal() error {
	size := func() {
		name, _ := os.Readlink("/proc/self/fd/0")
		s, err := unix.IoctlGetWinsize(0, unix.TIOCGWINSZ)
		if err != nil {
			fmt.Println(err)
			return
		}
		fmt.Println("on", name, s.Row, s.Col, os.Getenv("TERM"))
	}
	changed, interrupted := make(chan os.Signal, 1), make(chan os.Signal, 1)
	signal.Notify(changed, syscall.SIGWINCH)
	signal.Notify(interrupted, syscall.SIGINT)
	size()
	go func() {
		for {
			select {
			case <-changed:
				size()
			case <-interrupted:
				fmt.Println("got an interrupt")
			}
		}
	}()
	for lines := bufio.NewScanner(os.Stdin); lines.Scan(); {
		if code, ok := strings.CutPrefix(lines.Text(), "exit "); ok {
			n, _ := strconv.Atoi(code)
			os.Exit(n)
		}
	}
	return nil
}

func cat() error {
	_, err := io.Copy(os.Stdout, os.Stdin)
	return err
}

func yes() error {
	for line := bytes.Repeat([]byte("y\n"), 16<<10); ; {
		if _, err := os.Stdout.Write(line); err != nil {
			return err
		}
	}
}

func wait() error {
	fmt.Println("waiting")
	time.Sleep(time.Hour)
	return nil
}

// count tells how many processes run this program with that first argument.
func count() error {
	n := 0
	dirs, err := os.ReadDir("/proc")
	if err != nil {
		return err
	}
	for _, d := range dirs {
		line, _ := os.ReadFile("/proc/" + d.Name() + "/cmdline")
		if args := strings.Split(string(line), "\x00"); len(args) > 1 && args[1] == os.Args[2] {
			n++
		}
	}
	fmt.Println(n)
	return nil
}

func touch() error { return os.WriteFile(os.Args[2], nil, 0o600) }

// check fails with what it has been told to say once there is a file of that name.
func check() error {
	if _, err := os.Stat(os.Args[2]); err == nil {
		fmt.Println("found \x1b[31m" + os.Args[2])
		os.Exit(3)
	}
	return nil
}
