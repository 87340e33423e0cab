package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/spf13/cobra"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/weft-mesh/weft/deploy/install"
)

// clusterFlags say which cluster a verb talks to, and where the control plane is in it.
type clusterFlags struct {
	target         install.Target
	istioNamespace string
}

func (c *clusterFlags) add(cmd *cobra.Command) {
	f := cmd.Flags()
	f.StringVar(&c.target.Kubeconfig, "kubeconfig", "", "`FILE` that says how to reach the cluster (default $KUBECONFIG, else ~/.kube/config)")
	f.StringVarP(&c.target.Kubeconfig, "vkubeconfig", "c", "", "the same, as istioctl's -c")
	_ = f.MarkHidden("vkubeconfig") // the flag was just made
	f.StringVar(&c.target.Context, "context", "", "`NAME` of the kubeconfig's context (default: its current one)")
	f.StringVarP(&c.istioNamespace, "istioNamespace", "i", "", "`NAMESPACE` of the control plane (default "+install.DefaultNamespace+")")
	_ = cmd.RegisterFlagCompletionFunc("context", c.contexts) // fails only when the flag is unknown or registered twice
}

// namespace of the control plane.
func (c *clusterFlags) namespace() string {
	if c.istioNamespace == "" {
		return install.DefaultNamespace
	}
	return c.istioNamespace
}

func (c *clusterFlags) connect() (*install.Cluster, error) { return install.Connect(c.target) }

// with runs a verb with the cluster that the flags mean.
func (c *clusterFlags) with(run func(cmd *cobra.Command, to *install.Cluster, args []string) error) func(*cobra.Command, []string) error {
	return func(cmd *cobra.Command, args []string) error {
		to, err := c.connect()
		if err != nil {
			return err
		}
		return run(cmd, to, args)
	}
}

// contexts completes --context.
func (c *clusterFlags) contexts(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
	rules := clientcmd.NewDefaultClientConfigLoadingRules()
	rules.ExplicitPath = c.target.Kubeconfig
	config, err := rules.Load()
	if err != nil {
		return nil, cobra.ShellCompDirectiveError
	}
	var out []string
	for name := range config.Contexts {
		out = append(out, name)
	}
	return out, cobra.ShellCompDirectiveNoFileComp
}

// operatorFlags say what is to be installed.
type operatorFlags struct {
	files     []string
	sets      []string
	setFiles  []string
	revision  string
	force     bool
	namespace *string
}

func (o *operatorFlags) add(cmd *cobra.Command, c *clusterFlags) {
	f := cmd.Flags()
	f.StringArrayVarP(&o.files, "filename", "f", nil, "`FILE` with an IstioOperator, or - for standard input; may be repeated, later ones win")
	f.StringArrayVarP(&o.sets, "set", "s", nil, "`PATH=VALUE` of one setting of IstioOperator.spec, like meshConfig.accessLogFile=/dev/stdout; wins over files; may be repeated")
	f.StringArrayVar(&o.setFiles, "set-file", nil, "`PATH=FILE`: the setting is the file's text; may be repeated")
	f.StringVarP(&o.revision, "revision", "r", "", "`NAME` of the control plane's revision, for two side by side (istio.io/rev)")
	f.BoolVar(&o.force, "force", false, "go on where only a doubt stands in the way; the messages say so")
	o.namespace = &c.istioNamespace
	_ = cmd.RegisterFlagCompletionFunc("set", completeSet) // fails only when the flag is unknown or registered twice
}

// input reads the files.
func (o *operatorFlags) input(in io.Reader) (install.Input, error) {
	out := install.Input{Sets: o.sets, Revision: o.revision, Namespace: *o.namespace, Force: o.force}
	for _, path := range o.files {
		var text []byte
		var err error
		if path == "-" {
			text, err = io.ReadAll(in)
			path = "standard input"
		} else {
			text, err = os.ReadFile(path)
		}
		if err != nil {
			return out, err
		}
		out.Files = append(out.Files, install.File{Name: path, Text: text})
	}
	for _, s := range o.setFiles {
		f, err := install.SetFile(s)
		if err != nil {
			return out, err
		}
		out.Texts = append(out.Texts, f)
	}
	return out, nil
}

// plan is what the flags ask for; warnings go to standard error.
func (o *operatorFlags) plan(cmd *cobra.Command) (*install.Plan, error) {
	input, err := o.input(cmd.InOrStdin())
	if err != nil {
		return nil, err
	}
	wanted, err := install.Resolve(input)
	if err != nil {
		return nil, err
	}
	plan, err := install.NewPlan(wanted)
	if err != nil {
		return nil, err
	}
	for _, w := range plan.Warnings {
		fmt.Fprintln(cmd.ErrOrStderr(), "warning: "+w)
	}
	return plan, nil
}

// completeSet offers the settings that people begin with.
func completeSet(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
	return install.SetCompletions(), cobra.ShellCompDirectiveNoSpace | cobra.ShellCompDirectiveNoFileComp
}

// revisions completes --revision with those of the cluster, and their tags.
func (c *clusterFlags) revisions(cmd *cobra.Command, _ []string, _ string) ([]string, cobra.ShellCompDirective) {
	return c.complete(cmd, func(ctx context.Context, to *install.Cluster) (names []string, err error) {
		all, err := to.Revisions(ctx, "")
		for _, r := range all {
			names = append(append(names, r.Revision), r.Tags...)
		}
		return names, err
	})
}

// tags completes the first argument with the cluster's tags.
func (c *clusterFlags) tags(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	if len(args) > 0 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	return c.complete(cmd, func(ctx context.Context, to *install.Cluster) (names []string, err error) {
		all, err := to.Tags(ctx)
		for _, t := range all {
			names = append(names, t.Tag)
		}
		return names, err
	})
}

// complete asks a cluster for names; one that does not answer at once offers none.
func (c *clusterFlags) complete(cmd *cobra.Command, ask func(context.Context, *install.Cluster) ([]string, error)) ([]string, cobra.ShellCompDirective) {
	to, err := c.connect()
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	ctx, cancel := context.WithTimeout(cmd.Context(), 2*time.Second)
	defer cancel()
	names, err := ask(ctx, to)
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	return names, cobra.ShellCompDirectiveNoFileComp
}
