package importer

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/hashicorp/hcl/v2"
	"github.com/hashicorp/hcl/v2/hclsyntax"
	"github.com/zclconf/go-cty/cty"
)

// readHCL reads a job file into a tree. Blocks are tables, their labels names. Nothing is evaluated but
// literals: variables, functions and references are expressions.
func readHCL(src []byte) (*node, error) {
	if err := checkChains(src); err != nil {
		return nil, err
	}
	file, diags := hclsyntax.ParseConfig(src, "", hcl.InitialPos)
	if diags.HasErrors() {
		for _, d := range diags {
			if d.Severity == hcl.DiagError && d.Subject != nil {
				return nil, fmt.Errorf("line %d:%d: %s; %s", d.Subject.Start.Line, d.Subject.Start.Column, d.Summary, d.Detail)
			}
		}
		return nil, errors.New("it is not HCL")
	}
	body, ok := file.Body.(*hclsyntax.Body)
	if !ok {
		return nil, errors.New("it is not HCL")
	}
	r := hclReader{src: src}
	root := &node{index: -1}
	return root, r.body(root, body, 0)
}

// checkChains refuses rows of operators that would take the parser's recursion deep without a bracket.
func checkChains(src []byte) error {
	run, questions := 0, 0
	for i, b := range src {
		switch b {
		case '!', '-':
			run++
		case '?':
			questions++
		case ' ', '\t', '\r', '\n':
		default:
			run = 0
		}
		if run > 1000 || questions > 10_000 {
			return fmt.Errorf("line %d: rows of operators that no job has", 1+strings.Count(string(src[:i]), "\n"))
		}
	}
	return nil
}

type hclReader struct {
	src    []byte
	budget budget
}

func (r *hclReader) body(n *node, body *hclsyntax.Body, depth int) error {
	for _, name := range sortedAttributes(body) {
		attr := body.Attributes[name]
		m, err := r.budget.node(n, name, attr.NameRange.Start.Line, depth)
		if err != nil {
			return err
		}
		n.items = append(n.items, m)
		if err := r.expression(m, attr.Expr, depth+1); err != nil {
			return err
		}
	}
	for _, block := range body.Blocks {
		m, err := r.budget.node(n, block.Type, block.TypeRange.Start.Line, depth)
		if err != nil {
			return err
		}
		m.name = strings.Join(block.Labels, ".")
		n.items = append(n.items, m)
		if err := r.body(m, block.Body, depth+1); err != nil {
			return err
		}
	}
	slices.SortStableFunc(n.items, func(a, b *node) int { return cmp.Compare(a.line, b.line) })
	return nil
}

func sortedAttributes(body *hclsyntax.Body) []string {
	names := make([]string, 0, len(body.Attributes))
	for name := range body.Attributes {
		names = append(names, name)
	}
	slices.SortFunc(names, func(a, b string) int {
		return cmp.Compare(body.Attributes[a].NameRange.Start.Byte, body.Attributes[b].NameRange.Start.Byte)
	})
	return names
}

func (r *hclReader) expression(n *node, e hclsyntax.Expression, depth int) error {
	switch e := e.(type) {
	case *hclsyntax.TupleConsExpr:
		n.kind = kindList
		for _, item := range e.Exprs {
			m, err := r.budget.node(n, n.key, item.Range().Start.Line, depth)
			if err != nil {
				return err
			}
			m.index = len(n.items)
			n.items = append(n.items, m)
			if err := r.expression(m, item, depth+1); err != nil {
				return err
			}
		}
		return nil
	case *hclsyntax.ObjectConsExpr:
		n.kind = kindTable
		for _, item := range e.Items {
			key, ok := literal(item.KeyExpr)
			if !ok || key.Type() != cty.String {
				r.unknown(n, e)
				return nil
			}
			m, err := r.budget.node(n, key.AsString(), item.KeyExpr.Range().Start.Line, depth)
			if err != nil {
				return err
			}
			n.items = append(n.items, m)
			if err := r.expression(m, item.ValueExpr, depth+1); err != nil {
				return err
			}
		}
		return nil
	}
	v, ok := literal(e)
	switch {
	case !ok:
		r.unknown(n, e)
	case v.IsNull():
		n.kind = kindNull
	case v.Type() == cty.String:
		n.kind, n.text = kindString, v.AsString()
		// Nomad interprets these when the task starts.
		if strings.Contains(n.text, "${") {
			r.unknown(n, e)
		}
	case v.Type() == cty.Bool:
		n.kind, n.text = kindBool, fmt.Sprint(v.True())
	default:
		n.kind, n.text = kindInteger, r.source(e)
		if strings.Trim(n.text, "-0123456789") != "" {
			n.kind = kindFloat
		}
	}
	return nil
}

// literal gives the value of an expression that needs nothing but itself: no variables, no functions.
func literal(e hclsyntax.Expression) (cty.Value, bool) {
	switch e := e.(type) {
	case *hclsyntax.LiteralValueExpr, *hclsyntax.ObjectConsKeyExpr, *hclsyntax.UnaryOpExpr:
	case *hclsyntax.TemplateExpr:
		if slices.ContainsFunc(e.Parts, func(p hclsyntax.Expression) bool {
			_, plain := p.(*hclsyntax.LiteralValueExpr)
			return !plain
		}) {
			return cty.NilVal, false
		}
	default:
		return cty.NilVal, false
	}
	v, diags := e.Value(nil)
	if diags.HasErrors() || !v.IsWhollyKnown() || !v.Type().IsPrimitiveType() && !v.IsNull() {
		return cty.NilVal, false
	}
	return v, true
}

func (r *hclReader) unknown(n *node, e hclsyntax.Expression) {
	n.kind, n.items = kindExpression, nil
	n.text = strings.Trim(strings.TrimSpace(r.source(e)), `"`)
	n.why = "its value is known to Nomad only: " + show(n.text)
}

func (r *hclReader) source(e hclsyntax.Expression) string {
	rng := e.Range()
	if rng.Start.Byte < 0 || rng.End.Byte > len(r.src) || rng.Start.Byte > rng.End.Byte {
		return ""
	}
	return string(r.src[rng.Start.Byte:rng.End.Byte])
}
