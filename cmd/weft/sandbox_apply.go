package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"path/filepath"
	"sort"
	"strings"
	"time"

	"github.com/spf13/cobra"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/weft-mesh/weft/sandbox"
	"github.com/weft-mesh/weft/sandbox/api"
	"github.com/weft-mesh/weft/sandbox/store"
)

// manifests are what -f and -R name.
type manifests struct {
	paths     []string
	recursive bool
}

func (m *manifests) register(cmd *cobra.Command) {
	cmd.Flags().StringArrayVarP(&m.paths, "filename", "f", nil, "file, directory or - for standard input (repeatable)")
	cmd.Flags().BoolVarP(&m.recursive, "recursive", "R", false, "directories below a directory given with -f too")
	must(cmd.MarkFlagFilename("filename", "yaml", "yml", "json"))
}

// read cuts the files into documents. A directory gives its .yaml, .yml and .json files.
func (m *manifests) read(stdin io.Reader) ([]api.Document, error) {
	var docs []api.Document
	add := func(name string, data []byte) { docs = append(docs, api.Split(name, data)...) }
	for _, p := range m.paths {
		if p == "-" {
			data, err := io.ReadAll(stdin)
			if err != nil {
				return nil, err
			}
			add("-", data)
			continue
		}
		files, err := m.filesOf(p)
		if err != nil {
			return nil, err
		}
		for _, f := range files {
			data, err := os.ReadFile(f)
			if err != nil {
				return nil, err
			}
			add(f, data)
		}
	}
	return docs, nil
}

// filesOf is the file itself, or a directory's files in the order of their names.
func (m *manifests) filesOf(path string) ([]string, error) {
	if u, err := url.Parse(path); err == nil && (u.Scheme == "http" || u.Scheme == "https") {
		return nil, fmt.Errorf("-f %s: manifests are not downloaded; fetch it and give the file", path)
	}
	st, err := os.Stat(path)
	if err != nil {
		return nil, fmt.Errorf("-f %s: %w", path, errors.Unwrap(err))
	}
	if st.IsDir() {
		return m.in(path)
	}
	return []string{path}, nil
}

func (m *manifests) in(dir string) ([]string, error) {
	var files []string
	below := false
	err := filepath.WalkDir(dir, func(p string, e os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if e.IsDir() && p != dir && !m.recursive {
			below = true
			return filepath.SkipDir
		}
		switch filepath.Ext(p) {
		case ".yaml", ".yml", ".json":
			if !e.IsDir() {
				files = append(files, p)
			}
		}
		return nil
	})
	if err == nil && len(files) == 0 {
		hint := ""
		if below {
			hint = "; -R looks into the directories below it too"
		}
		err = fmt.Errorf("%s has no .yaml, .yml or .json files%s", dir, hint)
	}
	sort.Strings(files)
	return files, err
}

func newSandboxApply(f *sandboxFlags) *cobra.Command {
	return applyVerb(f, &cobra.Command{
		Use:   "apply -f FILE|DIRECTORY|-",
		Short: "Create or change objects from manifests",
		Long: `Creates or changes objects from manifests. All documents are checked first, with file and line in every
message; when one is broken, nothing is applied.`,
		Args: cobra.NoArgs,
	}, false)
}

func applyVerb(f *sandboxFlags, cmd *cobra.Command, create bool) *cobra.Command {
	var files manifests
	var dryRun string
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if len(files.paths) == 0 {
			return errors.New("say what: -f FILE, -f DIRECTORY or -f -")
		}
		docs, err := files.read(cmd.InOrStdin())
		if err != nil {
			return err
		}
		return f.apply(cmd, docs, create, dryRun != "" && dryRun != "none")
	}
	files.register(cmd)
	cmd.Flags().StringVar(&dryRun, "dry-run", "none", "none, client or server: check only")
	cmd.Flags().Lookup("dry-run").NoOptDefVal = "server"
	return cmd
}

func (f *sandboxFlags) apply(cmd *cobra.Command, docs []api.Document, create, dryRun bool) error {
	if len(docs) == 0 {
		return errors.New("no objects in what was given")
	}
	c, err := f.client()
	if err != nil {
		return err
	}
	results, err := c.Apply(cmd.Context(), docs, api.ApplyOptions{Namespace: f.namespace, Enforce: f.namespace != "", Create: create, DryRun: dryRun})
	if err != nil {
		return serverError(err)
	}
	failed := false
	for _, r := range results {
		for _, w := range r.Warnings {
			fmt.Fprintln(cmd.ErrOrStderr(), "Warning: "+w)
		}
		if r.Error != "" {
			failed = true
			fmt.Fprintln(cmd.ErrOrStderr(), "weft: "+r.Error)
			continue
		}
		line := r.Object + " " + r.Verb
		if dryRun {
			line += " (dry run)"
		}
		if r.Note != "" {
			line += "  # " + r.Note
		}
		fmt.Fprintln(cmd.OutOrStdout(), line)
	}
	if failed {
		return exitStatus(1)
	}
	return nil
}

func newSandboxCreate(f *sandboxFlags) *cobra.Command {
	cmd := applyVerb(f, &cobra.Command{
		Use:   "create -f FILE|DIRECTORY|-",
		Short: "Create objects from manifests, or a namespace by name",
		Args:  cobra.NoArgs,
	}, true)
	simple := func(use, short, manifest string, short2 ...string) *cobra.Command {
		return &cobra.Command{
			Use: use + " NAME", Aliases: short2, Short: short, Args: cobra.ExactArgs(1),
			RunE: func(cmd *cobra.Command, args []string) error {
				return f.apply(cmd, []api.Document{{File: "argument", Line: 1, Text: fmt.Sprintf(manifest, args[0])}}, true, false)
			},
		}
	}
	cmd.AddCommand(
		simple("namespace", "Create a namespace", "apiVersion: v1\nkind: Namespace\nmetadata: {name: %q}\n", "ns"),
		simple("serviceaccount", "Create a service account", "apiVersion: v1\nkind: ServiceAccount\nmetadata: {name: %q}\n", "sa"),
	)
	return cmd
}

func newSandboxDelete(f *sandboxFlags) *cobra.Command {
	var files manifests
	var selector string
	var all, force, wait, ignore, now bool
	grace := int64(-1)
	timeout := time.Duration(0)
	cmd := &cobra.Command{
		Use:               "delete (-f FILE | TYPE NAME... | TYPE/NAME... | TYPE -l SELECTOR | TYPE --all)",
		Short:             "Delete objects and, by default, wait until they are gone",
		ValidArgsFunction: f.completeTargets,
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := f.client()
			if err != nil {
				return err
			}
			ctx := cmd.Context()
			var what []doomed
			if len(files.paths) > 0 {
				docs, err := files.read(cmd.InOrStdin())
				if err != nil {
					return err
				}
				if what, err = f.doomedByFiles(docs); err != nil {
					return err
				}
			} else {
				ts, err := targets(args)
				if err != nil {
					return err
				}
				if what, err = f.doomedByName(ctx, c, ts, selector, all); err != nil {
					return serverError(err)
				}
			}
			var g *int64
			switch {
			case now:
				one := int64(1)
				g = &one
			case grace >= 0:
				g = &grace
			case force:
				zero := int64(0)
				g = &zero
			}
			if timeout > 0 {
				var cancel context.CancelFunc
				ctx, cancel = context.WithTimeout(ctx, timeout)
				defer cancel()
			}
			var failed []error
			var going []doomed
			for _, d := range what {
				err := c.Delete(ctx, d.kind, d.namespace, d.name, g)
				if apierrors.IsNotFound(err) && ignore {
					continue
				}
				if err != nil {
					failed = append(failed, serverError(err))
					continue
				}
				fmt.Fprintf(cmd.OutOrStdout(), "%s %q deleted\n", d.kind.Printed(), d.name)
				going = append(going, d)
			}
			if wait {
				for _, d := range going {
					if err := c.WaitGone(ctx, d.kind, d.namespace, d.name); err != nil {
						failed = append(failed, fmt.Errorf("waiting for %s %q to go: %w", d.kind.Printed(), d.name, err))
						break
					}
				}
			}
			return errors.Join(failed...)
		},
	}
	files.register(cmd)
	fl := cmd.Flags()
	fl.StringVarP(&selector, "selector", "l", "", "label selector")
	fl.BoolVar(&all, "all", false, "all of the type in the namespace")
	fl.BoolVar(&force, "force", false, "do not give pods time to end")
	fl.BoolVar(&now, "now", false, "give pods one second to end")
	fl.BoolVar(&wait, "wait", true, "wait until the objects are gone")
	fl.BoolVar(&ignore, "ignore-not-found", false, "what does not exist is no error")
	fl.Int64Var(&grace, "grace-period", -1, "seconds pods get to end; negative means their own")
	fl.DurationVar(&timeout, "timeout", 0, "how long to wait; 0 means until they are gone")
	return cmd
}

type doomed struct {
	kind            *store.Kind
	namespace, name string
}

func (f *sandboxFlags) doomedByFiles(docs []api.Document) ([]doomed, error) {
	var out []doomed
	for _, d := range docs {
		objects, err := api.Read(d)
		if err != nil {
			return nil, err
		}
		for _, o := range objects {
			k, _ := store.KindFor(o)
			ns := o.GetNamespace()
			if ns == "" {
				ns = f.ns()
			}
			if f.namespace != "" && k.Namespaced && ns != f.namespace {
				return nil, fmt.Errorf("%s: %s %q is in namespace %q, but -n says %q", d.Place(0), k.Kind, o.GetName(), ns, f.namespace)
			}
			out = append(out, doomed{k, ns, o.GetName()})
		}
	}
	// A namespace goes last: the objects in it are named one by one and would be missing otherwise.
	sort.SliceStable(out, func(i, j int) bool { return out[i].kind.Plural != "namespaces" && out[j].kind.Plural == "namespaces" })
	return out, nil
}

func (f *sandboxFlags) doomedByName(ctx context.Context, c *sandbox.Client, ts []target, selector string, all bool) ([]doomed, error) {
	var out []doomed
	for _, t := range ts {
		if t.name != "" {
			out = append(out, doomed{t.kind, f.ns(), t.name})
			continue
		}
		objects, err := f.choose(ctx, c, []target{t}, selector, all)
		if err != nil {
			return nil, err
		}
		for _, o := range objects {
			if metav1.GetControllerOf(o) != nil && len(ts) > 1 {
				continue // "delete all": owned objects go with their owners
			}
			out = append(out, doomed{t.kind, o.GetNamespace(), o.GetName()})
		}
	}
	return out, nil
}

func newSandboxAPIResources() *cobra.Command {
	return &cobra.Command{
		Use:   "api-resources",
		Short: "The kinds of objects a sandbox knows",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			fmt.Fprintf(cmd.OutOrStdout(), "%-34s%-14s%-42s%-12s%s\n", "NAME", "SHORTNAMES", "APIVERSION", "NAMESPACED", "KIND")
			for _, k := range store.Kinds {
				gv := k.Version
				if k.Group != "" {
					gv = k.Group + "/" + k.Version
				}
				fmt.Fprintf(cmd.OutOrStdout(), "%-34s%-14s%-42s%-12t%s\n", k.Plural, strings.Join(k.Short, ","), gv, k.Namespaced, k.Kind)
			}
			return nil
		},
	}
}
