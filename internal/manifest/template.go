package manifest

import "strings"

// template is the smallest manifest that `pinnace init` writes.
const template = `# What to run, and how. Every key: docs/specs/manifest/manifest-schema.md
schema = "v1"
name   = "NAME"

# RAM of the virtual machine of each instance: a hard cap.
resources = { memory = "256MiB" }

# The process listens on 8080; the world reaches it on port 80. Without this table nothing is reachable.
ports.web = { port = 8080, expose = "public", edge = "raw", public_port = 80 }

# Traffic goes to an instance once this path answers 200.
# health.ready = { type = "http", port = "web", path = "/" }
`

// Template gives a commented manifest for an app, as small as one can be. It is valid when name is a valid
// name of an app; any other name is written as it is, and Parse says what is wrong with it.
func Template(name string) []byte {
	return []byte(strings.Replace(template, `"NAME"`, quote(name), 1))
}
