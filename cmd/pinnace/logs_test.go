package main

import (
	"bytes"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	pinnacev1 "github.com/pinnacehq/pinnace/internal/api/pinnace/v1"
)

func TestSinceTime(t *testing.T) {
	now := time.Date(2026, 1, 31, 12, 0, 0, 0, time.UTC)
	for text, want := range map[string]time.Time{
		"10m":                       now.Add(-10 * time.Minute),
		"0s":                        now,
		"2026-01-30":                time.Date(2026, 1, 30, 0, 0, 0, 0, time.UTC),
		"2026-01-30 11:00:00":       time.Date(2026, 1, 30, 11, 0, 0, 0, time.UTC),
		"2026-01-30T11:00:00.5":     time.Date(2026, 1, 30, 11, 0, 0, 5e8, time.UTC),
		"2026-01-30T11:00:00+02:00": time.Date(2026, 1, 30, 9, 0, 0, 0, time.UTC),
	} {
		got, err := sinceTime(text, now)
		if err != nil || !got.AsTime().Equal(want) {
			t.Errorf("%q: got %v, %v, want %v", text, got, err, want)
		}
	}
	if got, err := sinceTime("", now); got != nil || err != nil {
		t.Errorf("nothing: got %v, %v", got, err)
	}
	for _, text := range []string{"yesterday", "-10m", "10", "2026-13-01"} {
		if got, err := sinceTime(text, now); err == nil {
			t.Errorf("%q: got %v", text, got)
		}
	}
}

// TestLogPrinter prints the lines of two instances, one of which was started again.
func TestLogPrinter(t *testing.T) {
	var out bytes.Buffer
	p := logPrinter{cli: &cli{stdout: &out}, target: "c", attempts: map[string]uint32{}, last: map[string]*pinnacev1.LogPosition{}}
	at := timestamppb.New(time.Date(2026, 1, 31, 12, 0, 0, 0, time.UTC))
	for _, m := range []*pinnacev1.StreamLogsResponse{
		{Instance: "a", Attempt: 1, Line: []byte("one")},
		{Instance: "b", Attempt: 1, Line: []byte("two \x1b[31m")},
		{Instance: "a", Attempt: 2, Line: []byte("three")},
		{Instance: "a", Stream: "platform", Line: []byte("gone")},
		{Instance: "a", Attempt: 2, Line: []byte("four")},
	} {
		m.At = at
		p.times = m.Attempt == 2
		if err := p.print(m); err != nil {
			t.Fatal(err)
		}
	}
	want := strings.Join([]string{
		"a one", "b two \uFFFD[31m", "2026-01-31T12:00:00.000Z a -- attempt 2 begins: the instance was started again",
		"2026-01-31T12:00:00.000Z a three", "a -- gone", "2026-01-31T12:00:00.000Z a four", "",
	}, "\n")
	if out.String() != want {
		t.Errorf("got\n%s\nwant\n%s", out.String(), want)
	}
}
