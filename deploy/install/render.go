package install

import (
	"bytes"
	"fmt"
	"strings"

	"github.com/weft-mesh/weft/deploy"
)

// Render makes the manifest of a plan without a cluster, for kubectl apply, GitOps, or to look at. component, if not empty, chooses one,
// by istioctl's name ("Pilot", "IngressGateways") or ours ("Istiod").
func (p *Plan) Render(component string) (string, error) {
	var out bytes.Buffer
	for _, r := range p.Releases {
		if component != "" && !isComponent(r.Component, component) {
			continue
		}
		made, err := deploy.Render(r.Chart, deploy.Release{Name: r.Name, Namespace: r.Namespace}, r.Values)
		if err != nil {
			return "", explain(r, err)
		}
		after, err := r.Run(bytes.NewBuffer(made.YAML()))
		if err != nil {
			return "", err
		}
		if _, err := after.WriteTo(&out); err != nil {
			return "", err
		}
	}
	if out.Len() == 0 && component != "" {
		return "", fmt.Errorf("nothing of component %q is enabled; components are Base, Pilot, Cni, IngressGateways, EgressGateways", component)
	}
	return out.String(), nil
}

func isComponent(have, asked string) bool {
	names := map[string][]string{
		Base: {"base"}, Pilot: {"pilot", "istiod"}, CNI: {"cni"},
		Ingress: {"ingressgateways", "ingressgateway"}, Egress: {"egressgateways", "egressgateway"},
	}
	for _, n := range names[have] {
		if strings.EqualFold(n, strings.ReplaceAll(asked, " ", "")) {
			return true
		}
	}
	return false
}
