package volume

import "testing"

func FuzzSuper(f *testing.F) {
	good := make([]byte, superBytes)
	good[0x38], good[0x39] = 0x53, 0xEF
	good[0x4], good[0x18] = 200, 2
	good[0xC] = 100
	f.Add(good, int64(MinSize))
	f.Add(make([]byte, superBytes), int64(MinSize))
	f.Fuzz(func(t *testing.T, b []byte, size int64) {
		if len(b) != superBytes || size < MinSize || size > MaxSize {
			t.Skip()
		}
		s, err := parseSuper(b)
		if err != nil {
			return
		}
		if used := s.used(size); used < -1 || used > size {
			t.Errorf("%+v: %d of %d bytes are used", s, used, size)
		}
	})
}

func TestSuper(t *testing.T) {
	b := make([]byte, superBytes)
	if _, err := parseSuper(b); err == nil {
		t.Error("zeros are a file system")
	}
	b[0x38], b[0x39], b[0x3A] = 0x53, 0xEF, 3
	b[0x4], b[0xC], b[0x18] = 200, 50, 2
	s, err := parseSuper(b)
	if err != nil {
		t.Fatal(err)
	}
	if !s.damaged() || s.used(MinSize) != 150*4096 {
		t.Errorf("got %+v, %d bytes used", s, s.used(MinSize))
	}
	b[0xD] = 1 // more free than there are
	if s, err := parseSuper(b); err != nil || s.used(MinSize) != -1 {
		t.Errorf("got %+v, %v", s, err)
	}
	b[0x18] = 7
	if _, err := parseSuper(b); err == nil {
		t.Error("blocks of 128 KiB")
	}
}
