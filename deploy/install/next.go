package install

import (
	"fmt"
	"strings"

	helm "helm.sh/helm/v4/pkg/release/v1"
)

// NextSteps are what a user does after an installation.
func (p *Plan) NextSteps() []string {
	if !p.has(Pilot) {
		return nil
	}
	label := "istio-injection=enabled"
	if p.Revision != "" {
		label = "istio-injection- istio.io/rev=" + p.Revision
	}
	return []string{
		"",
		"Next: label a namespace, and restart what runs in it so that it gets its sidecars:",
		"  kubectl label namespace NAME --overwrite " + label,
		"  kubectl rollout restart deployment -n NAME",
	}
}

// Notes are what charts say about values without effect.
func Notes(releases []*helm.Release) []string {
	const begins = "These values do nothing here:"
	var out []string
	for _, r := range releases {
		if r.Info == nil {
			continue
		}
		if _, rest, ok := strings.Cut(r.Info.Notes, begins); ok {
			for line := range strings.Lines(rest) {
				if line = strings.TrimSpace(line); line != "" {
					out = append(out, fmt.Sprintf("note: value of %s without effect: %s", r.Name, line))
				}
			}
		}
	}
	return out
}
