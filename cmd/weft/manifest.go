package main

import (
	"fmt"
	"os"

	"github.com/spf13/cobra"

	"github.com/weft-mesh/weft/deploy/install"
)

// newManifest is `weft manifest`.
func newManifest() *cobra.Command {
	cmd := &cobra.Command{
		Use:     "manifest",
		Short:   "What an installation would write, without a cluster",
		Example: "  weft manifest generate --set profile=demo > mesh.yaml\n  weft manifest diff old.yaml new.yaml",
	}
	cmd.AddCommand(newManifestGenerate(), newManifestDiff())
	onlyVerbs(cmd)
	return cmd
}

func newManifestGenerate() *cobra.Command {
	var cluster clusterFlags
	var operator operatorFlags
	var component, output string
	cmd := &cobra.Command{
		Use:   "generate",
		Short: "Print all objects of an installation",
		Long: `generate prints what weft install would write, for kubectl apply and GitOps. No cluster is asked. The definitions (CRDs) come first;
the namespace of the control plane must exist, and let the node agent in (docs/install.md).`,
		Example: `  weft manifest generate -f mesh.yaml | kubectl apply --server-side -f -
  weft manifest generate --set profile=demo --component Pilot`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			plan, err := operator.plan(cmd)
			if err != nil {
				return err
			}
			text, err := plan.Render(component)
			if err != nil {
				return err
			}
			if output != "" && output != "-" {
				return os.WriteFile(output, []byte(text), 0o644)
			}
			_, err = fmt.Fprint(cmd.OutOrStdout(), text)
			return err
		},
	}
	operator.add(cmd, &cluster)
	cmd.Flags().StringVarP(&cluster.istioNamespace, "istioNamespace", "i", "", "`NAMESPACE` of the control plane (default "+install.DefaultNamespace+")")
	cmd.Flags().StringVar(&component, "component", "", "only `NAME`: Base, Pilot, Cni, IngressGateways or EgressGateways")
	cmd.Flags().StringVarP(&output, "output", "o", "", "`FILE` to write instead of standard output")
	_ = cmd.RegisterFlagCompletionFunc("component", cobra.FixedCompletions([]string{"Base", "Pilot", "Cni", "IngressGateways", "EgressGateways"}, cobra.ShellCompDirectiveNoFileComp)) // fails only when the flag is unknown or registered twice
	return cmd
}

func newManifestDiff() *cobra.Command {
	return &cobra.Command{
		Use:     "diff FILE FILE",
		Short:   "Compare two manifests object by object, whatever their order",
		Long:    "diff prints what differs between two manifests; its exit status is 1 when something does.",
		Example: "  weft manifest generate > a.yaml; weft manifest generate --set profile=demo > b.yaml; weft manifest diff a.yaml b.yaml",
		Args:    cobra.ExactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			var texts [2]string
			for i, name := range args {
				text, err := os.ReadFile(name)
				if err != nil {
					return err
				}
				texts[i] = string(text)
			}
			diff, err := install.DiffManifests(args[0], texts[0], args[1], texts[1])
			if err != nil {
				return err
			}
			return printDiff(cmd, diff, "The manifests are identical")
		},
	}
}
