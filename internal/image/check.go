package image

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// check gives what is wrong with the content of a file, "" for nothing.
func (v *verifier) check(ctx context.Context, name string, f *os.File, size int64) (string, error) {
	digits := strings.TrimSuffix(filepath.Base(name), filepath.Ext(name))
	switch filepath.Dir(name) + filepath.Ext(name) {
	case "layers.tar":
		got, err := v.hash(ctx, f, 0, size)
		return differs(got, digits), err
	case "layers.idx":
		var sum indexCheck
		if err := v.each(ctx, f, 0, size, func(b []byte) { _, _ = sum.Write(b) }); err != nil {
			return "", err
		}
		tarSize, err := sum.tarSize()
		if err != nil {
			return err.Error(), nil
		}
		return v.indexSize(ctx, "layers/"+digits+".tar", tarSize)
	case "metadata.erofs":
		want := v.wantMetadata(digits)
		if want == "" {
			v.report.Unchecked = append(v.report.Unchecked, name)
			return "", nil
		}
		got, err := v.hash(ctx, f, 0, size)
		return differs(got, want), err
	case "packs.img":
		if v.packs[name] == nil {
			v.report.Unchecked = append(v.report.Unchecked, name)
			return "", nil
		}
		return v.pack(ctx, v.packs[name], f, size)
	case "images.json":
		if size > maxRecord {
			return fmt.Sprintf("has %d bytes, a record has no more than %d", size, maxRecord), nil
		}
		b, err := v.read(ctx, f, size)
		if err != nil {
			return "", err
		}
		return v.recordProblem(digits, b), nil
	default:
		return "", nil
	}
}

// indexSize compares what an index says with its tar. When they differ, the tar tells which one is damaged.
func (v *verifier) indexSize(ctx context.Context, tar string, want int64) (string, error) {
	info, err := os.Stat(filepath.Join(v.s.dir, tar))
	if err != nil || info.Size() == want {
		return "", ignoreMissing(err)
	}
	if err := v.file(ctx, tar); err != nil {
		return "", err
	}
	if slices.ContainsFunc(v.report.Damaged, func(d Damage) bool { return d.Name == tar }) {
		return "", nil
	}
	return fmt.Sprintf("is of a layer of %d bytes, the layer has %d", want, info.Size()), nil
}

func differs(got, want string) string {
	if got == want {
		return ""
	}
	return "its sha256 is " + got + ", want " + want
}

// wantMetadata is what the records say of the metadata that is named by identity.
func (v *verifier) wantMetadata(identity string) string {
	for _, img := range v.inv.images {
		if img.record.Converter == Converter && hexIdentity(img.spec.diffIDs) == identity {
			return img.record.MetadataSHA256
		}
	}
	return ""
}

func (v *verifier) recordProblem(digits string, b []byte) string {
	r := decodeRecord(b)
	if r == nil {
		return "is not a record"
	}
	if _, err := parseSpec(digestPrefix+digits, r.Manifest, r.Config, v.s.limits); err != nil {
		return err.Error()
	}
	return ""
}

// pack compares a pack disk with its layout, and its partitions with the names of the layers.
func (v *verifier) pack(ctx context.Context, p *packPlan, f *os.File, size int64) (string, error) {
	if size != p.size {
		return fmt.Sprintf("has %d bytes, want %d", size, p.size), nil
	}
	table, end := p.head(), p.tail()
	for _, part := range []struct {
		at   int64
		want []byte
	}{{0, table}, {p.size - int64(len(end)), end}} {
		sum := sha256.Sum256(part.want)
		got, err := v.hash(ctx, f, part.at, int64(len(part.want)))
		if err != nil {
			return "", err
		}
		if got != hex.EncodeToString(sum[:]) {
			return "its partition table is damaged", nil
		}
	}
	for i, part := range p.partitions {
		got, err := v.hash(ctx, f, part.start, part.layer.Size)
		if err != nil {
			return "", err
		}
		if problem := differs(got, strings.TrimPrefix(part.layer.DiffID, digestPrefix)); problem != "" {
			return fmt.Sprintf("partition %d: %s", i+1, problem), nil
		}
	}
	return "", nil
}
