package manifest

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"
)

// value reads a value into the field of its row, and reports whether it is right. A field whose value is wrong
// stays zero, so that the rules between keys do not judge it again.
func (d *decoder) value(c *spec, n *node, s *scope) bool {
	switch dst := c.ref(s).(type) {
	case *string:
		text, f := d.stringValue(c, n)
		if d.judge(c, n, s, f) {
			*dst = text
		}
		return f.code == ""
	case *int:
		v, f := d.integer(c, n)
		if d.judge(c, n, s, f) {
			*dst = int(v)
		}
		return f.code == ""
	case *int64:
		v, f := d.quantity(c, n)
		if d.judge(c, n, s, f) {
			*dst = v
		}
		return f.code == ""
	case *uint32:
		v, f := mode(c, n)
		*dst = v
		return d.judge(c, n, s, f)
	case *time.Duration:
		v, f := d.quantity(c, n)
		if d.judge(c, n, s, f) {
			*dst = time.Duration(v) * time.Millisecond
		}
		return f.code == ""
	case *bool:
		*dst = n.text == "true"
		if n.kind != kindBool {
			return d.judge(c, n, s, fault{code: CodeWrongType, message: "expected true or false, found " + n.show()})
		}
		return true
	case *[]string:
		v, ok := d.stringList(c, n, s)
		*dst = v
		return ok
	case *[]int:
		v, ok := d.integerSet(c, n, s)
		*dst = v
		return ok
	case *map[string]string:
		return d.stringMap(c, n, s, dst)
	default:
		// The table test makes sure that there is no row of another type.
		return d.judge(c, n, s, fault{code: CodeWrongType, message: "has no reader"})
	}
}

// judge reports a fault, if there is one, where the value stands.
func (d *decoder) judge(c *spec, n *node, s *scope, f fault) bool {
	if f.code == "" {
		return true
	}
	d.report(n.at, c.Key, s.name, f)
	return false
}

func (d *decoder) stringValue(c *spec, n *node) (string, fault) {
	if n.kind != kindString {
		f := fault{code: CodeWrongType, message: "expected a string, found " + n.show()}
		switch {
		case len(c.Values) == 1:
			f.suggestion = quote(c.Values[0])
		case n.kind == kindInteger && c.check != nil && c.judgeString(n.text).code == "":
			f.suggestion = quote(n.text)
		}
		return "", f
	}
	return n.text, c.judgeString(n.text)
}

// judgeString checks a string, or a member of a set or list of strings, against its row.
func (c *spec) judgeString(text string) fault {
	if strings.Contains(text, "\x00") {
		return fault{code: CodeOutOfRange, message: "has a NUL character", why: "no argument, variable or path can carry one"}
	}
	if c.check != nil {
		if f := c.check(text); f.code != "" {
			return f
		}
	}
	if len(c.Values) > 0 && !slices.Contains(c.Values, text) {
		f := fault{code: CodeOutOfRange, message: fmt.Sprintf("%s is not one of %s", quote(text), oneOf(c.Values))}
		if near := nearest(text, c.Values); near != "" {
			f.suggestion = strconv.Quote(near)
		}
		return f
	}
	return fault{}
}

func oneOf(values []string) string {
	quoted := make([]string, len(values))
	for i, v := range values {
		quoted[i] = strconv.Quote(v)
	}
	return strings.Join(quoted, ", ")
}

func (d *decoder) integer(c *spec, n *node) (int64, fault) {
	if n.kind != kindInteger {
		f := fault{code: CodeWrongType, message: "expected an integer, found " + n.show()}
		if _, err := strconv.ParseInt(n.text, 10, 64); err == nil && n.kind == kindString {
			f.suggestion = n.text
		}
		return 0, f
	}
	v, f := plainInteger(n.text)
	if f.code == "" {
		f = c.inRange(v, n.literal())
	}
	return v, f
}

// plainInteger reads decimal digits. TOML knows more spellings; a manifest has one for each value.
func plainInteger(text string) (int64, fault) {
	digits := strings.TrimPrefix(text, "-")
	if !consistsOf(digits, numeric) || digits == "" || len(digits) > 1 && digits[0] == '0' {
		f := fault{code: CodeOutOfRange, message: fmt.Sprintf("%s is not written as a plain decimal number", shorten(text)), why: "every value has one spelling"}
		if v, err := strconv.ParseInt(strings.TrimPrefix(text, "+"), 0, 64); err == nil {
			f.suggestion = strconv.FormatInt(v, 10)
		}
		return 0, f
	}
	v, err := strconv.ParseInt(text, 10, 64)
	if err != nil {
		return 0, fault{code: CodeOutOfRange, message: fmt.Sprintf("%s is too big", shorten(text))}
	}
	return v, fault{}
}

// inRange checks a value in canonical units. shown is the value as its author wrote it.
func (c *spec) inRange(v int64, shown string) fault {
	if v >= c.Min && v <= c.Max {
		return fault{}
	}
	return fault{code: CodeOutOfRange, message: fmt.Sprintf("%s is out of range: %s", shown, c.Range())}
}

// Range gives the bounds of the key as they are written in TOML, or "" when it has none.
func (k *Key) Range() string {
	switch k.Type {
	case Integer:
		return fmt.Sprintf("%d..%d", k.Min, k.Max)
	case Duration:
		return formatDuration(k.Min) + ".." + formatDuration(k.Max)
	case Size:
		return formatSize(k.Min) + ".." + formatSize(k.Max)
	case CPU:
		return formatMilli(k.Min) + ".." + formatMilli(k.Max)
	case Mode:
		return fmt.Sprintf("%04o..%04o", k.Min, k.Max)
	case Argv, StringSet, IntegerSet, StringMap, Tables:
		if k.Min == 0 {
			return fmt.Sprintf("at most %d", k.Max)
		}
		return fmt.Sprintf("%d..%d entries", k.Min, k.Max)
	default:
		return ""
	}
}

// quantity reads a duration, a size or a CPU request into canonical units.
func (d *decoder) quantity(c *spec, n *node) (int64, fault) {
	var v int64
	var f fault
	switch {
	case d.canonical:
		v, f = canonicalQuantity(c, n)
	case c.Type == CPU:
		v, f = milliCPU(n)
	case c.Type == Size:
		v, f = withUnit(n, sizeUnits)
	default:
		v, f = withUnit(n, durationUnits)
	}
	if f.code == "" {
		f = c.inRange(v, n.literal())
	}
	return v, f
}

func canonicalQuantity(c *spec, n *node) (int64, fault) {
	if n.kind != kindInteger {
		return 0, fault{code: CodeWrongType, message: "expected an integer, found " + n.show()}
	}
	v, f := plainInteger(n.text)
	if f.code == "" && c.Type == Size && v%kib != 0 {
		f = fault{code: CodeOutOfRange, message: "a size is a multiple of 1024 bytes"}
	}
	return v, f
}

// milliCPU reads a number of vCPUs from its decimal text, never by way of a float: 0.1 is exactly 100.
func milliCPU(n *node) (int64, fault) {
	if n.kind != kindInteger && n.kind != kindFloat {
		f := fault{code: CodeWrongType, message: "expected a number of vCPUs such as 0.5, found " + n.show()}
		if n.kind == kindString && decimal(n.text) {
			f.suggestion = n.text
		}
		if milli, ok := strings.CutSuffix(n.text, "m"); ok && n.kind == kindString && len(milli) < 9 && consistsOf(milli, numeric) && milli != "" {
			v, _ := strconv.ParseInt(milli, 10, 64)
			f.suggestion = formatMilli(v)
		}
		return 0, f
	}
	if strings.Contains(n.text, "inf") || strings.Contains(n.text, "nan") {
		return 0, fault{code: CodeWrongType, message: shorten(n.text) + " is not a number of vCPUs"}
	}
	text := strings.TrimPrefix(n.text, "-")
	if !decimal(text) {
		return 0, fault{code: CodeOutOfRange, message: n.literal() + " is not written as a plain decimal number such as 0.5", why: "every value has one spelling"}
	}
	whole, fraction, _ := strings.Cut(text, ".")
	if len(strings.TrimRight(fraction, "0")) > 3 {
		return 0, fault{code: CodeOutOfRange, message: n.literal() + " has more than three decimals", why: "a thousandth of a vCPU is the smallest unit"}
	}
	v, err := strconv.ParseInt(whole+(fraction + "000")[:3], 10, 64)
	if err != nil {
		return 0, fault{code: CodeOutOfRange, message: n.literal() + " is too big"}
	}
	if text != n.text {
		v = -v
	}
	return v, fault{}
}

// decimal matches digits, and a point and digits after them.
func decimal(s string) bool {
	whole, fraction, point := strings.Cut(s, ".")
	return whole != "" && consistsOf(whole, numeric) && consistsOf(fraction, numeric) && (!point || fraction != "")
}

// mode reads four octal digits.
func mode(c *spec, n *node) (uint32, fault) {
	why := "the digits are octal, as for chmod"
	if n.kind != kindString {
		f := fault{code: CodeWrongType, message: `expected a file mode in quotes such as "0400", found ` + n.show(), why: why}
		if octal := strings.TrimPrefix(n.text, "0o"); n.kind == kindInteger && len(octal) <= 4 && consistsOf(octal, octalDigits) {
			f.suggestion = fmt.Sprintf(`"%04s"`, octal)
		}
		return 0, f
	}
	if len(n.text) != 4 || !consistsOf(n.text, octalDigits) {
		f := fault{code: CodeOutOfRange, message: n.literal() + " is not four octal digits", why: why}
		if len(n.text) == 3 && consistsOf(n.text, octalDigits) {
			f.suggestion = `"0` + n.text + `"`
		}
		return 0, f
	}
	v, err := strconv.ParseUint(n.text, 8, 32)
	if err != nil {
		return 0, fault{code: CodeOutOfRange, message: n.literal() + " is not four octal digits", why: why}
	}
	f := c.inRange(int64(v), n.literal())
	if f.code != "" {
		f.why = "setuid, setgid and sticky bits mean nothing on a secret"
	}
	return uint32(v), f
}
