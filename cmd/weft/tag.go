package main

import (
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/weft-mesh/weft/deploy/install"
)

// newTag is `weft tag`.
func newTag() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "tag",
		Short: "Names for revisions, so that namespaces need no new label at each upgrade",
		Long: `A tag is a second name of a revision. Namespaces are labelled istio.io/rev=TAG once; moving the tag to another revision moves them all at
their next restart. The tag "default" is what istio-injection=enabled means.`,
		Example: `  weft tag set prod --revision 1-20
  kubectl label namespace shop istio.io/rev=prod
  weft tag set prod --revision 1-21 --overwrite`,
	}
	cmd.AddCommand(newTagSet(), newTagGenerate(), newTagList(), newTagRemove())
	onlyVerbs(cmd)
	return cmd
}

func newTagSet() *cobra.Command {
	var cluster clusterFlags
	var revision string
	var overwrite, yes bool
	cmd := &cobra.Command{
		Use:               "set TAG --revision REVISION",
		Short:             "Make a tag, or move it to another revision",
		Example:           "  weft tag set prod --revision 1-20\n  weft tag set default --revision 1-20 --overwrite",
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: cluster.tags,
		RunE: cluster.with(func(cmd *cobra.Command, to *install.Cluster, args []string) error {
			hook, err := to.MakeTag(cmd.Context(), args[0], revision)
			if err != nil {
				return err
			}
			if err := to.SetTag(cmd.Context(), hook, overwrite || yes); err != nil {
				return err
			}
			label := "istio.io/rev=" + args[0]
			if args[0] == "default" {
				label = "istio-injection=enabled"
			}
			fmt.Fprintf(cmd.OutOrStdout(), "Tag %s means revision %s now. Namespaces with the label %s get it when their pods restart:\n  kubectl rollout restart deployment -n NAME\n", args[0], revision, label)
			return nil
		}),
	}
	cluster.add(cmd)
	cmd.Flags().StringVarP(&revision, "revision", "r", "default", "`NAME` of the revision that the tag means")
	cmd.Flags().BoolVar(&overwrite, "overwrite", false, "move the tag when it means another revision")
	cmd.Flags().BoolVarP(&yes, "skip-confirmation", "y", false, "the same, as in istioctl")
	_ = cmd.RegisterFlagCompletionFunc("revision", cluster.revisions) // fails only when the flag is unknown or registered twice
	return cmd
}

func newTagGenerate() *cobra.Command {
	var cluster clusterFlags
	var revision, output string
	cmd := &cobra.Command{
		Use:     "generate TAG --revision REVISION",
		Short:   "Print the webhook configuration of a tag, for GitOps",
		Example: "  weft tag generate prod --revision 1-20 > tag-prod.yaml",
		Args:    cobra.ExactArgs(1),
		RunE: cluster.with(func(cmd *cobra.Command, to *install.Cluster, args []string) error {
			hook, err := to.MakeTag(cmd.Context(), args[0], revision)
			if err != nil {
				return err
			}
			for i := range hook.Webhooks {
				hook.Webhooks[i].ClientConfig.CABundle = nil // the control plane writes it
			}
			return printData(cmd.OutOrStdout(), output, hook)
		}),
	}
	cluster.add(cmd)
	cmd.Flags().StringVarP(&revision, "revision", "r", "default", "`NAME` of the revision that the tag means")
	addOutput(cmd, &output, "yaml", "yaml", "json")
	_ = cmd.RegisterFlagCompletionFunc("revision", cluster.revisions) // fails only when the flag is unknown or registered twice
	return cmd
}

func newTagList() *cobra.Command {
	var cluster clusterFlags
	var output string
	cmd := &cobra.Command{
		Use:     "list",
		Aliases: []string{"show"},
		Short:   "List tags, the revisions they mean and the namespaces that use them",
		Example: "  weft tag list\n  weft tag list -o json",
		Args:    cobra.NoArgs,
		RunE: cluster.with(func(cmd *cobra.Command, to *install.Cluster, _ []string) error {
			tags, err := to.Tags(cmd.Context())
			if err != nil {
				return err
			}
			return printList(cmd.OutOrStdout(), output, tags, "There are no tags; weft tag set makes one.", "TAG\tREVISION\tPROXIES\tNAMESPACES", func(t install.Tag) string {
				return fmt.Sprintf("%s\t%s\t%d\t%s", t.Tag, t.Revision, t.Proxies, strings.Join(t.Namespaces, ","))
			})
		}),
	}
	cluster.add(cmd)
	addOutput(cmd, &output, "table", "table", "json", "yaml")
	return cmd
}

func newTagRemove() *cobra.Command {
	var cluster clusterFlags
	var yes bool
	cmd := &cobra.Command{
		Use:               "remove TAG",
		Aliases:           []string{"delete"},
		Short:             "Remove a tag",
		Example:           "  weft tag remove prod",
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: cluster.tags,
		RunE: cluster.with(func(cmd *cobra.Command, to *install.Cluster, args []string) error {
			tag, err := to.FindTag(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			if len(tag.Namespaces) > 0 && !yes {
				if err := confirm(cmd, fmt.Sprintf("Namespaces %s use tag %s: new pods there would get no sidecar. Proceed?", strings.Join(tag.Namespaces, ", "), tag.Tag)); err != nil {
					return err
				}
			}
			if err := to.RemoveTag(cmd.Context(), tag); err != nil {
				return err
			}
			fmt.Fprintf(cmd.OutOrStdout(), "Tag %s is removed.\n", tag.Tag)
			if tag.Tag == "default" {
				fmt.Fprintln(cmd.OutOrStdout(), "Run weft install again so that the default revision takes istio-injection=enabled back.")
			}
			return nil
		}),
	}
	cluster.add(cmd)
	cmd.Flags().BoolVarP(&yes, "skip-confirmation", "y", false, "do not ask")
	return cmd
}
