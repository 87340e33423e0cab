// generate writes the files of the charts that are made from others: the custom resource definitions of the base chart, from
// the module that the API's types come from, and each chart's values.schema.json, from its values.yaml and
// files/without-effect.yaml. Run it by `go generate ./deploy`; a test says when it was forgotten.
package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/weft-mesh/weft/deploy"
)

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "generate: "+err.Error())
		os.Exit(1)
	}
}

// run expects the package's directory as the working directory, which go generate gives.
func run() error {
	files, err := generate()
	if err != nil {
		return err
	}
	for path, text := range files {
		if err := os.WriteFile(path, text, 0o644); err != nil {
			return err
		}
	}
	return nil
}

// generate returns what the made files should be, by their paths in the package deploy.
func generate() (map[string][]byte, error) {
	definitions, err := definitions()
	if err != nil {
		return nil, err
	}
	files := map[string][]byte{"charts/base/files/crd-all.gen.yaml": definitions}
	charts := map[string]*values{}
	for _, name := range deploy.Names {
		if charts[name], err = read("charts/" + name); err != nil {
			return nil, fmt.Errorf("chart %s: %w", name, err)
		}
	}
	for name := range charts {
		if files["charts/"+name+"/values.schema.json"], err = schema(name, charts); err != nil {
			return nil, fmt.Errorf("chart %s: %w", name, err)
		}
	}
	return files, nil
}

// definitions are the custom resource definitions of the module istio.io/api. They say themselves that Helm must keep them.
func definitions() ([]byte, error) {
	dir, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}", "istio.io/api").Output()
	if err != nil {
		return nil, fmt.Errorf("where is the module istio.io/api: %w", err)
	}
	return os.ReadFile(filepath.Join(strings.TrimSpace(string(dir)), "kubernetes", "customresourcedefinitions.gen.yaml"))
}
