package node

import (
	"context"
	_ "embed"
)

//go:embed manifests/coredns.yaml
var dnsManifest string

// dns installs cluster DNS and waits until it answers.
func (c *cluster) dns(ctx context.Context) error {
	if err := c.kubectl(ctx, dnsManifest, "apply", "--server-side", "-f", "-"); err != nil {
		return err
	}
	return c.wait(ctx, "kubelet", func(ctx context.Context) error {
		return c.kubectl(ctx, "", "rollout", "status", "deployment/coredns", "-n", "kube-system", "--timeout=2s")
	})
}
