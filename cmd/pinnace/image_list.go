package main

import (
	"fmt"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/pinnacehq/pinnace/internal/image"
)

// listedImage is one of image ls --json and image df --json.
type listedImage struct {
	Digest       string      `json:"digest"`
	Architecture string      `json:"architecture"`
	Complete     bool        `json:"complete"`
	Layers       int         `json:"layers"`
	Bytes        int64       `json:"bytes"`
	SharedBytes  int64       `json:"shared_bytes"` // of files that other images need, too
	UniqueBytes  int64       `json:"unique_bytes"` // that would go with the image
	UsedAt       time.Time   `json:"used_at"`
	Leases       []leaseInfo `json:"leases"`
}

type imageList struct {
	Store  string        `json:"store"`
	Images []listedImage `json:"images"`
}

func listed(u *image.Usage) []listedImage {
	list := []listedImage{}
	for _, i := range u.Images {
		list = append(list, listedImage{
			Digest: i.Digest, Architecture: i.Config.Architecture, Complete: i.Complete, Layers: len(i.Layers),
			Bytes: i.Bytes, SharedBytes: i.Bytes - i.Unique, UniqueBytes: i.Unique, UsedAt: i.Used.UTC(), Leases: leaseInfos(i.Leases),
		})
	}
	return list
}

func (c *cli) newImageList(where *imageStore) *cobra.Command {
	return &cobra.Command{
		Use:     "ls",
		Aliases: []string{"list"},
		Short:   "List the images, the most recently used first, and who holds them",
		Example: "  pinnace image ls\n  pinnace image ls --cache --json",
		RunE: func(*cobra.Command, []string) error {
			return where.with(c, false, func(s *image.Store, dir string) error {
				u, err := s.Usage()
				if err != nil {
					return err
				}
				if c.json {
					return c.printJSON(imageList{Store: dir, Images: listed(u)})
				}
				if len(u.Images) == 0 {
					c.say("no images in %s", dir)
					return nil
				}
				w := tabwriter.NewWriter(c.stdout, 0, 0, 2, ' ', 0)
				fmt.Fprintln(w, "IMAGE\tARCH\tLAYERS\tBYTES\tLAST USED\tHELD BY")
				for _, i := range u.Images {
					by := holders(i.Leases)
					if !i.Complete {
						by = "incomplete; " + by
					}
					fmt.Fprintf(w, "%s\t%s\t%d\t%s\t%s\t%s\n", shortDigest(i.Digest), i.Config.Architecture, len(i.Layers), byteSize(i.Bytes), ago(i.Used), by)
				}
				return w.Flush()
			})
		},
	}
}

// storeUsage is what image df prints with --json.
type storeUsage struct {
	Store        string            `json:"store"`
	Kinds        map[string]amount `json:"kinds"`
	Unnamed      amount            `json:"unnamed"` // of those, what nothing needs
	Bytes        int64             `json:"bytes"`
	QuotaBytes   *int64            `json:"quota_bytes,omitempty"`
	ReserveBytes int64             `json:"reserve_bytes"`
	FreeBytes    int64             `json:"free_bytes"` // of the file system
	DiskBytes    int64             `json:"disk_bytes"`
	Images       []listedImage     `json:"images"`
}

type amount struct {
	Files int   `json:"files"`
	Bytes int64 `json:"bytes"`
}

func (c *cli) newImageDF(where *imageStore) *cobra.Command {
	return &cobra.Command{
		Use:   "df",
		Short: "Show what the images take, and what each shares with others",
		Long: `Df shows what kinds of files the store has, and for each image what it takes, how much of
that it shares with other images, and how much would go with it.`,
		Example: "  pinnace image df\n  pinnace image df --json",
		RunE: func(*cobra.Command, []string) error {
			return where.with(c, false, func(s *image.Store, dir string) error {
				u, err := s.Usage()
				if err != nil {
					return err
				}
				if c.json {
					return c.printJSON(usageOf(u, dir))
				}
				return c.printUsage(u, dir)
			})
		},
	}
}

func usageOf(u *image.Usage, dir string) storeUsage {
	out := storeUsage{
		Store: dir, Kinds: map[string]amount{}, Unnamed: amount(u.Unnamed), Bytes: u.Bytes, ReserveBytes: u.Quota.Reserve,
		FreeBytes: u.Free, DiskBytes: u.Disk, Images: listed(u),
	}
	for _, kind := range usageKinds {
		out.Kinds[kind] = amount(u.Kinds[kind])
	}
	if bounded(u.Quota) {
		out.QuotaBytes = &u.Quota.Bytes
	}
	return out
}

func bounded(q image.Quota) bool { return q.Bytes > 0 && q.Bytes != image.NoQuota }

var usageKinds = []string{"layers", "indexes", "metadata", "packs", "images", "quarantine", "unfinished"}

func (c *cli) printUsage(u *image.Usage, dir string) error {
	c.print("%s", dir)
	w := tabwriter.NewWriter(c.stdout, 0, 0, 2, ' ', 0)
	for _, kind := range usageKinds {
		if a := u.Kinds[kind]; a.Bytes > 0 {
			fmt.Fprintf(w, "  %s\t%d\t%s\n", kind, a.Files, byteSize(a.Bytes))
		}
	}
	fmt.Fprintf(w, "  in all\t\t%s\n", byteSize(u.Bytes))
	if u.Unnamed.Files > 0 {
		fmt.Fprintf(w, "  of no image\t%d\t%s\n", u.Unnamed.Files, byteSize(u.Unnamed.Bytes))
	}
	if err := w.Flush(); err != nil {
		return err
	}
	if bounded(u.Quota) {
		c.print("quota %s, %.0f%% used", byteSize(u.Quota.Bytes), 100*float64(u.Bytes)/float64(u.Quota.Bytes))
	}
	reserve := ""
	if u.Quota.Reserve > 0 {
		reserve = ", " + byteSize(u.Quota.Reserve) + " of it kept in reserve"
	}
	c.print("file system %s, %s free%s", byteSize(u.Disk), byteSize(u.Free), reserve)
	if len(u.Images) == 0 {
		return nil
	}
	c.print("")
	w = tabwriter.NewWriter(c.stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "IMAGE\tBYTES\tSHARED\tUNIQUE\tHELD BY")
	for _, i := range u.Images {
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\n", shortDigest(i.Digest), byteSize(i.Bytes), byteSize(i.Bytes-i.Unique), byteSize(i.Unique), holders(i.Leases))
	}
	return w.Flush()
}
