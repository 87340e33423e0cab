package node

import (
	"context"
	_ "embed"
	"errors"
	"os"
	"path/filepath"
)

//go:embed manifests/multus.yaml
var multusManifest string

// serviceAccount is where Multus's daemon looks for its credentials, on the node.
const serviceAccount = "/run/secrets/kubernetes.io/serviceaccount"

// multus puts Multus in front of the primary network. Its daemon ("thin" plugin) writes 00-multus.conf with a copy of the primary
// network's list, and writes it again when that list changes.
func (c *cluster) multus(ctx context.Context) error {
	if err := c.kubectl(ctx, multusManifest, "apply", "--server-side", "-f", "-"); err != nil {
		return err
	}
	if err := c.writeConflist("10-ptp.conflist", c.ptp()); err != nil {
		return err
	}
	if err := c.start(ctx, "multus"); err != nil {
		return err
	}
	if err := c.wait(ctx, "multus", func(context.Context) error {
		if found, err := filepath.Glob(c.path("cni", "net.d", "00-multus.conf*")); err != nil || len(found) == 0 { // a .conf or a .conflist, by the primary network's version
			return errors.Join(errors.New("no 00-multus.conf yet"), err)
		}
		return nil
	}); err != nil {
		return err
	}
	c.step("multus delegates to ptp")
	return nil
}

// multusCredentials are those of a service account that is bound to its role.
func (c *cluster) multusCredentials() error {
	ca, err := os.ReadFile(c.pki("ca.crt"))
	if err != nil {
		return err
	}
	dir := c.path("serviceaccount")
	return errors.Join(os.MkdirAll(dir, 0o700),
		os.WriteFile(filepath.Join(dir, "ca.crt"), ca, 0o600), os.WriteFile(filepath.Join(dir, "token"), []byte(c.tokens["multus"]), 0o600))
}
