package main

import (
	"fmt"
	"os"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/weft-mesh/weft/deploy/install"
	"github.com/weft-mesh/weft/deploy/profiles"
)

// newProfile is `weft profile`.
func newProfile() *cobra.Command {
	cmd := &cobra.Command{
		Use:     "profile",
		Short:   "Settings to begin with",
		Example: "  weft profile list\n  weft profile dump demo\n  weft profile diff default demo\n  weft install --set profile=demo",
	}
	cmd.AddCommand(newProfileList(), newProfileDump(), newProfileDiff())
	onlyVerbs(cmd)
	return cmd
}

func completeProfiles(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
	return profiles.Names(), cobra.ShellCompDirectiveNoFileComp
}

func newProfileList() *cobra.Command {
	var output string
	cmd := &cobra.Command{
		Use:     "list",
		Short:   "List the profiles",
		Example: "  weft profile list",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if output != "table" {
				return printData(cmd.OutOrStdout(), output, install.Profiles())
			}
			t := tabwriter.NewWriter(cmd.OutOrStdout(), 0, 0, 3, ' ', 0)
			for _, p := range install.Profiles() {
				fmt.Fprintf(t, "%s\t%s\n", p.Name, p.About)
			}
			return t.Flush()
		},
	}
	addOutput(cmd, &output, "table", "table", "json", "yaml")
	return cmd
}

func newProfileDump() *cobra.Command {
	var cluster clusterFlags
	var operator operatorFlags
	var output, path string
	cmd := &cobra.Command{
		Use:   "dump [PROFILE]",
		Short: "Print a profile, or what files and settings come to, as one IstioOperator",
		Example: `  weft profile dump demo
  weft profile dump -f mesh.yaml --set meshConfig.accessLogFile=/dev/stdout
  weft profile dump --config-path components.pilot`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			input, err := operator.input(cmd.InOrStdin())
			if err != nil {
				return err
			}
			if len(args) == 1 {
				input.Profile = args[0]
			}
			wanted, err := install.Resolve(input)
			if err != nil {
				return err
			}
			v, err := wanted.Dump(path)
			if err != nil {
				return err
			}
			return printData(cmd.OutOrStdout(), output, v)
		},
		ValidArgsFunction: completeProfiles,
	}
	operator.add(cmd, &cluster)
	cmd.Flags().StringVarP(&path, "config-path", "p", "", "`PATH` of a part, like components.pilot")
	addOutput(cmd, &output, "yaml", "yaml", "json")
	return cmd
}

func newProfileDiff() *cobra.Command {
	return &cobra.Command{
		Use:     "diff PROFILE PROFILE|FILE",
		Short:   "Compare two profiles, or a profile with a file",
		Long:    "diff prints what differs between two profiles, or IstioOperator files; its exit status is 1 when something does.",
		Example: "  weft profile diff default demo\n  weft profile diff default mesh.yaml",
		Args:    cobra.ExactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			var texts [2]string
			for i, name := range args {
				input := install.Input{Profile: name}
				if text, err := os.ReadFile(name); err == nil {
					input = install.Input{Files: []install.File{{Name: name, Text: text}}}
				}
				wanted, err := install.Resolve(input)
				if err != nil {
					return err
				}
				if texts[i], err = wanted.DumpText(""); err != nil {
					return err
				}
			}
			diff, err := install.DiffText(args[0], texts[0], args[1], texts[1])
			if err != nil {
				return err
			}
			return printDiff(cmd, diff, "The profiles are identical")
		},
		ValidArgsFunction: completeProfiles,
	}
}

// printDiff prints a diff and ends with status 1 when there is one, as diff does.
func printDiff(cmd *cobra.Command, diff, same string) error {
	if diff == "" {
		fmt.Fprintln(cmd.OutOrStdout(), same)
		return nil
	}
	fmt.Fprint(cmd.OutOrStdout(), diff)
	return exitStatus(1)
}
