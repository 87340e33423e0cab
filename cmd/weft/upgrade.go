package main

import (
	"fmt"
	"strings"

	"github.com/spf13/cobra"
)

// newUpgrade is `weft upgrade`.
func newUpgrade() *cobra.Command {
	var cluster clusterFlags
	var operator operatorFlags
	var apply applyFlags
	cmd := &cobra.Command{
		Use:   "upgrade",
		Short: "Bring an installed mesh to this version, or put a second control plane beside it",
		Long: `upgrade brings the control plane, the node agents and the gateways to the version of this program, definitions first. Without -f the
settings are those of the last installation (kubectl get istiooperator installed-state), with --set laid over.

With --set revision=NAME a second control plane comes up beside the first; namespaces move one by one by their label istio.io/rev, and
back. Pods are never restarted: their sidecars keep working with the new control plane, and the output says how to renew them.

Downgrades, and upgrades over more than one minor version, are refused without --force.`,
		Example: `  weft upgrade
  weft upgrade --set revision=1-20
  weft upgrade -f mesh.yaml --dry-run`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			to, err := cluster.connect()
			if err != nil {
				return err
			}
			if err := to.Reachable(); err != nil {
				return err
			}
			input, err := operator.input(cmd.InOrStdin())
			if err != nil {
				return err
			}
			up, err := to.PlanUpgrade(cmd.Context(), input)
			if err != nil {
				return err
			}
			for _, w := range up.Warnings {
				fmt.Fprintln(cmd.ErrOrStderr(), "warning: "+w)
			}
			if len(up.Refusals) > 0 && !operator.force {
				return fmt.Errorf("%s", strings.Join(up.Refusals, "\n"))
			}
			settings := "the settings of the last installation"
			if !up.Recorded {
				settings = "profile " + up.Profile
			}
			question := fmt.Sprintf("This upgrades revision %s in namespace %s from %s to %s, with %s. Proceed?", up.Revisioned(), up.Namespace, up.From, up.To, settings)
			if up.From == "" {
				question = fmt.Sprintf("This puts revision %s (%s) beside %s in namespace %s, with %s. Proceed?", up.Revisioned(), up.To, strings.Join(up.Beside, ", "), up.Namespace, settings)
			}
			apply.after = func() ([]string, error) {
				if steps := up.BesideSteps(); steps != nil {
					return steps, nil
				}
				return to.RenewalSteps(cmd.Context(), up.Revision)
			}
			return apply.run(cmd, to, up.Plan, operator.force, question)
		},
	}
	operator.add(cmd, &cluster)
	cluster.add(cmd)
	apply.add(cmd)
	return cmd
}
