package programs

import (
	"context"
	"strings"

	"github.com/weft-mesh/weft/e2e/kubernetes/node"
)

// Node makes what a node of a spec runs beside its images.
func (b *Builder) Node(ctx context.Context, spec node.Spec) (bins node.Bins, err error) {
	for _, step := range []struct {
		to   *string
		make func() (string, error)
	}{
		{&bins.Kubernetes, func() (string, error) { return b.Kubernetes(ctx, spec.Version) }},
		{&bins.Containerd, func() (string, error) { return b.containerd(ctx, node.Versions[spec.Version]) }},
		{&bins.CNI, func() (string, error) { return b.CNI(ctx) }},
		{&bins.Netfilter, func() (string, error) { return b.netfilter(ctx) }},
		{&bins.Flanneld, func() (string, error) {
			if !strings.HasPrefix(spec.Network, "flannel") {
				return "", nil
			}
			return b.flannel(ctx)
		}},
		{&bins.Multus, func() (string, error) {
			if spec.Network != "multus" {
				return "", nil
			}
			return b.multus(ctx)
		}},
	} {
		if *step.to, err = step.make(); err != nil {
			return bins, err
		}
	}
	return bins, nil
}
