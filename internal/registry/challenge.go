package registry

import "strings"

const (
	authenticate = "Www-Authenticate"
	basic        = "basic"
	bearer       = "bearer"
)

// challenge is one way to authenticate that a server offers.
type challenge struct {
	scheme string // in lower case
	params map[string]string
}

// choose picks the challenge that is answered: the first that we know, but one that somebody without
// credentials can answer when there are none.
func choose(offered []challenge, anonymous bool) *challenge {
	var first *challenge
	for i := range offered {
		switch c := &offered[i]; {
		case c.scheme == bearer && (first == nil || anonymous && first.scheme == basic), c.scheme == basic && first == nil:
			first = c
		}
	}
	return first
}

// parseChallenges reads the values of WWW-Authenticate headers. Each can hold several challenges, and a comma
// separates both these and the parameters of one. What makes no sense is skipped.
func parseChallenges(values []string) []challenge {
	var found []challenge
	for _, v := range values {
		p := challengeParser{rest: v}
		found = append(found, p.challenges()...)
	}
	return found
}

// maxChallenges bounds what a header can make us keep.
const maxChallenges = 16

type challengeParser struct{ rest string }

func (p *challengeParser) challenges() []challenge {
	var found []challenge
	for len(found) < maxChallenges {
		p.skip(" \t,")
		word := p.token()
		if word == "" {
			if p.rest == "" {
				return found
			}
			p.rest = p.rest[1:]
			continue
		}
		before := p.rest
		p.skip(" \t")
		if len(found) > 0 && strings.HasPrefix(p.rest, "=") {
			p.rest = p.rest[1:]
			p.skip(" \t")
			value := p.value()
			last := found[len(found)-1].params
			// The first of two counts: the same that the guard has looked at, which looks at all of them.
			if key := strings.ToLower(word); len(last) < maxChallenges {
				if _, twice := last[key]; !twice {
					last[key] = value
				}
			}
			continue
		}
		p.rest = before
		found = append(found, challenge{scheme: strings.ToLower(word), params: map[string]string{}})
	}
	return found
}

func (p *challengeParser) skip(chars string) { p.rest = strings.TrimLeft(p.rest, chars) }

// token reads a word as RFC 9110 has it.
func (p *challengeParser) token() string {
	end := strings.IndexFunc(p.rest, func(r rune) bool {
		return (r < '0' || r > '9') && (r < 'A' || r > 'Z') && (r < 'a' || r > 'z') && !strings.ContainsRune("!#$%&'*+-.^_`|~", r)
	})
	if end < 0 {
		end = len(p.rest)
	}
	word := p.rest[:end]
	p.rest = p.rest[end:]
	return word
}

// value reads a quoted string, or what comes before the next comma.
func (p *challengeParser) value() string {
	if !strings.HasPrefix(p.rest, `"`) {
		end := strings.IndexAny(p.rest, ", \t")
		if end < 0 {
			end = len(p.rest)
		}
		v := p.rest[:end]
		p.rest = p.rest[end:]
		return v
	}
	var v strings.Builder
	for i := 1; i < len(p.rest); i++ {
		switch ch := p.rest[i]; {
		case ch == '"':
			p.rest = p.rest[i+1:]
			return v.String()
		case ch == '\\' && i+1 < len(p.rest):
			i++
			v.WriteByte(p.rest[i])
		default:
			v.WriteByte(ch)
		}
	}
	p.rest = "" // the quote does not end
	return v.String()
}
