// Package deploy holds the Helm charts that install weft, and reads them. It knows nothing about clusters: package
// install puts the charts into one, and `helm install ./deploy/charts/istiod` does too.
//
// The charts have Istio's names and values. charts/istiod/values.yaml says what can be set, and is the place to begin.
// Three files of a chart are made by go generate: the definitions of the base chart come from the module istio.io/api,
// and each values.schema.json from values.yaml and files/without-effect.yaml.
package deploy

//go:generate go run ./generate

import (
	"embed"
	"fmt"
	"io/fs"
	"strings"

	"helm.sh/helm/v4/pkg/chart/loader/archive"
	chart "helm.sh/helm/v4/pkg/chart/v2"
	"helm.sh/helm/v4/pkg/chart/v2/loader"

	"github.com/weft-mesh/weft/deploy/release"
)

// Charts are the files of all charts: charts/NAME/Chart.yaml and so on.
//
//go:embed all:charts
var Charts embed.FS

// The charts, by the names that Istio gives them.
const (
	Base    = "base"    // definitions of the API, validation; one for all revisions
	Istiod  = "istiod"  // the control plane; one for each revision
	CNI     = "cni"     // the node agent; one for all revisions
	Gateway = "gateway" // one for each gateway
)

// Names are the charts in the order in which they are installed.
var Names = []string{Base, Istiod, CNI, Gateway}

// definitions is the path of the custom resource definitions, of which there is one copy.
const definitions = "charts/base/files/crd-all.gen.yaml"

// Chart loads a chart, new for each call since Helm changes charts. It has the version of this program.
func Chart(name string) (*chart.Chart, error) {
	root := "charts/" + name
	var files []*archive.BufferedFile
	err := fs.WalkDir(Charts, root, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		b, err := Charts.ReadFile(path)
		files = append(files, &archive.BufferedFile{Name: strings.TrimPrefix(path, root+"/"), Data: b})
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("there is no chart %q: want one of %s", name, strings.Join(Names, ", "))
	}
	c, err := loader.LoadFiles(files)
	if err != nil {
		return nil, fmt.Errorf("chart %s: %w", name, err)
	}
	if v := release.Version(); v != c.Metadata.AppVersion {
		c.Metadata.Version, c.Metadata.AppVersion = v, v
	}
	return c, nil
}

// CRDs are the custom resource definitions of Istio's API, as YAML documents.
func CRDs() []byte {
	b, err := Charts.ReadFile(definitions)
	if err != nil {
		return nil // it is embedded
	}
	return b
}
