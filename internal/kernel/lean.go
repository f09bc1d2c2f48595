package kernel

import (
	"bytes"
	"debug/elf"
)

// signatureEnd closes a module that has a signature appended: it comes last, behind a struct module_signature whose
// last four bytes are the length of the signature, big-endian (include/linux/module_signature.h).
const signatureEnd = "~Module signature appended~\n"

const signatureHeader = 12

// lean leaves out what costs a guest time when it loads a module and serves it nothing: the signature, over all of the
// module, which kernels check even where they load what has none, and the description of types for tracing programs.
// Together they are more than half of the time that the modules take under emulation. enforced says that the kernel loads nothing without a
// signature: then the module stays as it is. So does one that is not as expected.
func lean(data []byte, enforced bool) []byte {
	if enforced {
		return data
	}
	return withoutTypes(withoutSignature(data))
}

func withoutSignature(data []byte) []byte {
	signed, ok := bytes.CutSuffix(data, []byte(signatureEnd))
	if !ok || len(signed) < signatureHeader {
		return data
	}
	var length int
	for _, b := range signed[len(signed)-4:] {
		length = length<<8 | int(b)
	}
	if length > len(signed)-signatureHeader {
		return data
	}
	return signed[:len(signed)-signatureHeader-length]
}

// withoutTypes gives the section of types a name that the kernel does not look for. Its bytes stay, as leaving them out
// would move everything behind them.
func withoutTypes(data []byte) []byte {
	f, err := elf.NewFile(bytes.NewReader(data))
	if err != nil || f.Section(".BTF") == nil {
		return data
	}
	names := f.Section(".shstrtab")
	if names == nil || names.Offset+names.Size > uint64(len(data)) {
		return data
	}
	out := bytes.Clone(data)
	table := out[names.Offset : names.Offset+names.Size]
	// The whole name only: ".BTF" may also be the end of another.
	if at := bytes.Index(table, []byte("\x00.BTF\x00")); at >= 0 {
		table[at+1] = '_'
	}
	return out
}
