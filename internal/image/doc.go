// Package image keeps OCI images in the form that machines boot from, without ever unpacking or mounting
// one on the host: there is no tree on the host's disk that a hostile layer could climb out of.
//
// A layer is its uncompressed tar, unchanged, under the name of its sha256, beside an index of its entries.
// An image is the merge of its layers' indexes, written as an EROFS file system whose file contents lie in
// those tars. docs/design/layers.md has the rules for layers that are odd or hostile.
//
// Everything that reads what is in a layer runs in a process of its own (package sandbox), which can do nothing
// but that: confined.go is its side, worker.go the store's.
//
// The package speaks to no registry (see Source), starts no machine, and knows nothing of releases or
// environments. An image's config is data to pass on, never a policy to follow.
//
// # Layout of a store
//
//	layers/<diffID>.tar      a layer; sha256sum of the file is its name
//	layers/<diffID>.idx      its entries, with a checksum; derived from the tar
//	metadata/<identity>.erofs  a file system, named by converter and diffIDs; derived from the indexes
//	packs/<identity>.img     a GPT disk of layers; derived from the tars
//	images/<manifest>.json   an image that is complete: manifest, config, checksums of what belongs to it
//	leases/<id>.json         who holds which image, so that no collection takes it
//	quarantine/              files that were found to be damaged
//	tmp/<process>/           what is being written, under a lock of its process
//	gc.lock                  shared by who takes a lease, exclusive for who collects
//
// A file gets its final name after its content was verified and synced, in the order index, tar, metadata,
// record: whoever finds a name finds all that it rests on. A crash leaves at most files in tmp, which the
// next Open removes, and complete files that no record names yet, which the next Pull uses.
// docs/design/image-store.md has the steps, and the rules of leases, collection and quota.
package image
