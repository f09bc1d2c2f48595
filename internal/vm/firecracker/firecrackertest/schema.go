package firecrackertest

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"slices"
	"strings"
)

// A kind is what a field's value has to be.
type kind int

const (
	text kind = iota
	boolean
	byteSized
	word     // 32 bits
	size     // 64 bits
	enum     // one of the field's values
	anything // checked by nobody here, because the driver does not send it
)

// A field of a request's body.
type field struct {
	name     string
	kind     kind
	required bool
	values   []string
}

// schemas are the bodies that PUT requests have in 1.15, by the first element of the path.
var schemas = map[string][]field{
	"logger": {
		{name: "log_path", kind: text},
		{name: "level", kind: enum, values: []string{"Off", "Trace", "Debug", "Info", "Warn", "Warning", "Error"}},
		{name: "show_level", kind: boolean},
		{name: "show_log_origin", kind: boolean},
		{name: "module", kind: text},
	},
	"metrics": {{name: "metrics_path", kind: text, required: true}},
	"serial":  {{name: "serial_out_path", kind: text}},
	"machine-config": {
		{name: "vcpu_count", kind: byteSized, required: true},
		{name: "mem_size_mib", kind: size, required: true},
		{name: "smt", kind: boolean},
		{name: "cpu_template", kind: enum, values: []string{"C3", "T2", "T2S", "T2CL", "T2A", "V1N1", "None"}},
		{name: "track_dirty_pages", kind: boolean},
		{name: "huge_pages", kind: enum, values: []string{"None", "2M"}},
	},
	"boot-source": {
		{name: "kernel_image_path", kind: text, required: true},
		{name: "initrd_path", kind: text},
		{name: "boot_args", kind: text},
	},
	"drives": {
		{name: "drive_id", kind: text, required: true},
		{name: "partuuid", kind: text},
		{name: "is_root_device", kind: boolean, required: true},
		{name: "cache_type", kind: enum, values: []string{"Unsafe", "Writeback"}},
		{name: "is_read_only", kind: boolean},
		{name: "path_on_host", kind: text},
		{name: "rate_limiter", kind: anything},
		{name: "io_engine", kind: enum, values: []string{"Sync", "Async"}},
		{name: "socket", kind: text},
	},
	"network-interfaces": {
		{name: "iface_id", kind: text, required: true},
		{name: "host_dev_name", kind: text, required: true},
		{name: "guest_mac", kind: text},
		{name: "rx_rate_limiter", kind: anything},
		{name: "tx_rate_limiter", kind: anything},
	},
	"vsock": {
		{name: "guest_cid", kind: word, required: true},
		{name: "uds_path", kind: text, required: true},
		{name: "vsock_id", kind: text},
	},
	"entropy": {{name: "rate_limiter", kind: anything}},
	"actions": {{name: "action_type", kind: enum, required: true, values: []string{"FlushMetrics", "InstanceStart", "SendCtrlAltDel"}}},
}

// check tells what Firecracker's decoder would say of a body.
func check(fields []field, body []byte) error {
	dec := json.NewDecoder(bytes.NewReader(body))
	if t, err := dec.Token(); err != nil || t != json.Delim('{') {
		return decodeError("expected value", 1)
	}
	seen := map[string]bool{}
	for dec.More() {
		t, err := dec.Token()
		name, isName := t.(string)
		if err != nil || !isName {
			return decodeError("key must be a string", dec.InputOffset())
		}
		at := slices.IndexFunc(fields, func(f field) bool { return f.name == name })
		switch {
		case at < 0:
			return decodeError(fmt.Sprintf("unknown field `%s`, expected %s", name, expected(fields)), dec.InputOffset())
		case seen[name]:
			return decodeError(fmt.Sprintf("duplicate field `%s`", name), dec.InputOffset())
		}
		seen[name] = true
		var raw json.RawMessage
		if err := dec.Decode(&raw); err != nil {
			return decodeError("expected value", dec.InputOffset())
		}
		if err := fields[at].check(raw); err != nil {
			return decodeError(err.Error(), dec.InputOffset())
		}
	}
	if _, err := dec.Token(); err != nil {
		return decodeError("EOF while parsing an object", dec.InputOffset())
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return decodeError("trailing characters", dec.InputOffset())
	}
	for _, f := range fields {
		if f.required && !seen[f.name] {
			return decodeError(fmt.Sprintf("missing field `%s`", f.name), int64(len(body)))
		}
	}
	return nil
}

func decodeError(what string, column int64) error {
	return fmt.Errorf("An error occurred when deserializing the json body of a request: %s at line 1 column %d.", what, column) //nolint:staticcheck // Firecracker's words
}

func expected(fields []field) string {
	names := make([]string, len(fields))
	for i, f := range fields {
		names[i] = "`" + f.name + "`"
	}
	if len(names) == 1 {
		return names[0]
	}
	return "one of " + strings.Join(names, ", ")
}

func (f field) check(raw json.RawMessage) error {
	if string(raw) == "null" && !f.required {
		return nil
	}
	var err error
	switch f.kind {
	case text:
		err = json.Unmarshal(raw, new(string))
	case boolean:
		err = json.Unmarshal(raw, new(bool))
	case byteSized:
		err = number(raw, math.MaxUint8)
	case word:
		err = number(raw, math.MaxUint32)
	case size:
		err = number(raw, math.MaxUint64)
	case enum:
		var v string
		if err = json.Unmarshal(raw, &v); err == nil && !slices.Contains(f.values, v) {
			return fmt.Errorf("unknown variant `%s`, expected one of `%s`", v, strings.Join(f.values, "`, `"))
		}
	case anything:
	}
	if err != nil {
		return fmt.Errorf("invalid type: %s, expected what `%s` is", raw, f.name)
	}
	return nil
}

func number(raw json.RawMessage, limit uint64) error {
	var n uint64
	if err := json.Unmarshal(raw, &n); err != nil {
		return err
	}
	if n > limit {
		return errors.New("too large")
	}
	return nil
}
