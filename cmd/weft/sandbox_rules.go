package main

import (
	"errors"
	"fmt"
	"path/filepath"

	"github.com/spf13/cobra"

	"github.com/weft-mesh/weft/redirect"
)

// newSandboxRules prints what redirects a pod's traffic. The pod's own words are not believed: the kernel's rules are
// read in its network namespace and compared with the pod's annotation.
func newSandboxRules(f *sandboxFlags) *cobra.Command {
	return &cobra.Command{
		Use:   "rules POD|TYPE/NAME",
		Short: "Show the redirection rules of a pod, compared with the kernel's",
		Long: `Prints the rules that redirect a pod's traffic to its sidecar, in nft's syntax, after comparing them with those
that the kernel has in the pod's network namespace. The exit status is 1 when they differ.`,
		Example:           `  weft sandbox rules deploy/reviews-v1`,
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: f.completePods,
		RunE: func(cmd *cobra.Command, args []string) error {
			d, err := f.dir()
			if err != nil {
				return err
			}
			c, err := f.client()
			if err != nil {
				return err
			}
			pods, err := f.pods(cmd.Context(), c, args[0])
			if err != nil {
				return serverError(err)
			}
			p := pods[0]
			written, ok := p.Annotations[redirect.Annotation]
			if !ok {
				return fmt.Errorf("pod %s has no annotation %s: nothing of it is redirected, because it has no sidecar (or it is a gateway)", p.Name, redirect.Annotation)
			}
			spec, err := redirect.Decode(written)
			if err != nil {
				return fmt.Errorf("pod %s: annotation %s: %w", p.Name, redirect.Annotation, err)
			}
			backend, err := redirect.Open(redirect.Auto)
			if err != nil {
				return err
			}
			var drift []string
			if err := redirect.InNetNS(filepath.Join(d.Pods(), "netns", string(p.UID)), func() (err error) {
				drift, err = backend.Verify(spec)
				return err
			}); err != nil {
				return fmt.Errorf("pod %s: %w", p.Name, err)
			}
			text, err := backend.Text(spec)
			if err != nil {
				return err
			}
			out := cmd.OutOrStdout()
			if len(drift) == 0 {
				fmt.Fprintf(out, "# pod %s/%s: the kernel's rules are these\n%s", p.Namespace, p.Name, text)
				return nil
			}
			fmt.Fprintf(out, "# pod %s/%s: the rules should be these\n%s", p.Namespace, p.Name, text)
			for _, line := range drift {
				fmt.Fprintf(cmd.ErrOrStderr(), "weft: differs: %s\n", line)
			}
			return errors.New("the kernel's rules are not what the pod's annotation says; a new pod gets them again")
		},
	}
}
