// Package inflate decodes gzip streams, the form in which most image layers come, in about a third of
// the time that compress/gzip takes. It is pure Go without package unsafe: every access to memory is checked or lies
// within an array whatever the input says, and no caller has to leave room behind a buffer.
//
// A stream is checked as RFC 1951 and RFC 1952 have it: the codes of every block are complete, no match
// reaches behind the start of its member, length and checksum of every member are right, a header that has
// a checksum fits it. A stream of several members is decoded to all of their contents, one after the other.
//
// # What follows the last member
//
// Bytes that are no further member are an error (ErrHeader), zeros as well, as in compress/gzip and
// klauspost/compress. gzip(1) warns of such bytes and ignores them, and ignores zeros silently, because
// tapes pad with them. A layer has no reason to have any, and two decoders that disagree about where
// content ends are what an attack needs.
//
// # Bounds
//
// A Reader takes about 90 KiB and a Buffer 512 KiB, whatever the stream, and a Reader reads up to 64 KiB more
// of its source than it has decoded. How much content there may be is the caller's to limit: a stream can be 1032 times as long
// decoded.
//
// The package does not write gzip, and gives no access to names and times in headers.
package inflate
