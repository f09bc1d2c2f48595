// Command generate is a plugin of buf that writes the description of ControlService, as OpenAPI and as a page. It runs as a
// part of make generate.
package main

import (
	"bytes"
	"encoding/json"
	"fmt"

	"google.golang.org/protobuf/compiler/protogen"
)

// described is the service that people and their scripts call. That of agents is between us.
const described = "ControlService"

func main() {
	protogen.Options{}.Run(func(p *protogen.Plugin) error {
		p.SupportedFeatures = 1 // proto3 optional
		for _, f := range p.Files {
			for _, s := range f.Services {
				if f.Generate && s.Desc.Name() == described {
					return write(p, s)
				}
			}
		}
		return fmt.Errorf("no file has the service %s", described)
	})
}

func write(p *protogen.Plugin, s *protogen.Service) error {
	b, err := json.Marshal(document(s))
	if err != nil {
		return err
	}
	var doc, html bytes.Buffer
	if err := json.Indent(&doc, b, "", " "); err != nil {
		return err
	}
	doc.WriteByte('\n')
	if err := page(&html, s); err != nil {
		return err
	}
	for name, content := range map[string][]byte{"openapi.json": doc.Bytes(), "openapi.html": html.Bytes()} {
		if _, err := p.NewGeneratedFile(name, "").Write(content); err != nil {
			return err
		}
	}
	return nil
}
