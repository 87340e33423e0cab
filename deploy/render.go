package deploy

import (
	"bytes"
	"fmt"
	"slices"
	"strings"

	"helm.sh/helm/v4/pkg/chart/common"
	"helm.sh/helm/v4/pkg/chart/common/util"
	"helm.sh/helm/v4/pkg/engine"
	releaseutil "helm.sh/helm/v4/pkg/release/v1/util"
)

// Release is what a chart is rendered for.
type Release struct {
	Name      string // of the Helm release; a gateway's name
	Namespace string
}

// Rendered is what a chart becomes.
type Rendered struct {
	Documents []Document // in the order in which they are applied
	Notes     string     // what a user is told after the installation
}

// Document is one object.
type Document struct {
	Kind   string
	Source string // "istiod/templates/service.yaml"
	YAML   string
}

// YAML are the documents of the given kinds, or all.
func (r *Rendered) YAML(kinds ...string) []byte {
	var b bytes.Buffer
	for _, d := range r.Documents {
		if len(kinds) == 0 || slices.Contains(kinds, d.Kind) {
			fmt.Fprintf(&b, "---\n# Source: %s\n%s\n", d.Source, d.YAML)
		}
	}
	return b.Bytes()
}

// Render renders a chart (Base, Istiod, CNI, Gateway) as `helm template` does: without a cluster, so that what templates look
// up there is empty. Values that the chart does not know are an error.
func Render(name string, r Release, values map[string]any) (*Rendered, error) {
	c, err := Chart(name)
	if err != nil {
		return nil, err
	}
	capabilities := common.DefaultCapabilities
	all, err := util.ToRenderValues(c, values, common.ReleaseOptions{Name: r.Name, Namespace: r.Namespace, Revision: 1, IsInstall: true}, capabilities)
	if err != nil {
		return nil, err
	}
	files, err := engine.Render(c, all)
	if err != nil {
		return nil, err
	}
	out := new(Rendered)
	for path, text := range files {
		if strings.HasSuffix(path, "/NOTES.txt") {
			out.Notes = text
			delete(files, path)
		}
	}
	_, manifests, err := releaseutil.SortManifests(files, capabilities.APIVersions, releaseutil.InstallOrder)
	if err != nil {
		return nil, fmt.Errorf("chart %s: %w", name, err)
	}
	for _, m := range manifests {
		out.Documents = append(out.Documents, Document{Kind: m.Head.Kind, Source: m.Name, YAML: strings.TrimSpace(m.Content)})
	}
	return out, nil
}
