package main

import (
	"bytes"
	"cmp"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/spf13/cobra"
	meshconfig "istio.io/api/mesh/v1alpha1"

	"github.com/weft-mesh/weft/mesh"
	"github.com/weft-mesh/weft/webhook"
)

// newKubeInject is `weft kube-inject`: what the webhook would do, to a file.
func newKubeInject() *cobra.Command {
	var files manifests
	var output, namespace string
	settings := injectFlags{}
	cmd := &cobra.Command{
		Use:   "kube-inject -f FILE|DIRECTORY|-",
		Short: "Add the proxy to the workloads in a file",
		Long: `kube-inject prints the file with a proxy in every pod and pod template that does not opt out, by the code that the
webhook runs. Comments and order stay; objects that hold no pods stay byte for byte.
Why something was not injected, and warnings, go to standard error.`,
		Example: `  weft kube-inject -f app.yaml | kubectl apply -f -
  kubectl get deploy web -o yaml | weft kube-inject -f - | kubectl apply -f -`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			all, err := readManifests(cmd, &files)
			if err != nil {
				return err
			}
			in, config, err := settings.injector()
			if err != nil {
				return err
			}
			var out bytes.Buffer
			for i, m := range all {
				if i > 0 && !bytes.HasSuffix(bytes.TrimSpace(out.Bytes()), []byte("---")) {
					out.WriteString("---\n")
				}
				if err := kubeInject(cmd, in, config, m, namespace, &out); err != nil {
					return err
				}
			}
			if output == "" || output == "-" {
				_, err = cmd.OutOrStdout().Write(out.Bytes())
				return err
			}
			return os.WriteFile(output, out.Bytes(), 0o644)
		},
	}
	f := cmd.Flags()
	files.register(cmd)
	f.StringVarP(&output, "output", "o", "", "file to write instead of standard output")
	f.StringVarP(&namespace, "namespace", "n", "default", "namespace of objects that name none")
	settings.add(cmd)
	return cmd
}

func kubeInject(cmd *cobra.Command, in *webhook.Injector, config *meshconfig.MeshConfig, m *webhook.Manifest, namespace string, out io.Writer) error {
	say := func(format string, args ...any) { fmt.Fprintf(cmd.ErrOrStderr(), format+"\n", args...) }
	for _, w := range m.Workloads {
		ns := cmp.Or(w.Namespace, namespace)
		d := in.DecideEnabled(w.Pod, ns)
		for _, line := range d.Warnings {
			say("%s: warning: %s", w, line)
		}
		if !d.Inject {
			say("%s: not injected: %s", w, d.Message)
			continue
		}
		warnings, err := m.Inject(in, w, ns, config)
		if err != nil {
			return err
		}
		for _, line := range warnings {
			say("%s: warning: %s", w, line)
		}
	}
	_, err := m.WriteTo(out)
	return err
}

// readManifests reads every file that -f names.
func readManifests(cmd *cobra.Command, files *manifests) ([]*webhook.Manifest, error) {
	if len(files.paths) == 0 {
		return nil, fmt.Errorf("%s: no file: use -f FILE, -f DIRECTORY, or -f - for standard input", cmd.Name())
	}
	var out []*webhook.Manifest
	add := func(name string, text []byte) error {
		m, err := webhook.ReadManifest(name, text)
		out = append(out, m)
		return err
	}
	for _, path := range files.paths {
		if path == "-" {
			text, err := io.ReadAll(cmd.InOrStdin())
			if err != nil {
				return nil, err
			}
			if err := add("standard input", text); err != nil {
				return nil, err
			}
			continue
		}
		names, err := files.filesOf(path)
		if err != nil {
			return nil, err
		}
		for _, name := range names {
			text, err := os.ReadFile(name)
			if err != nil {
				return nil, err
			}
			if err := add(name, text); err != nil {
				return nil, err
			}
		}
	}
	return out, nil
}

// injectFlags are the options of an Injector as flags, under istioctl's names where it has them.
type injectFlags struct {
	options    webhook.Options
	meshConfig string
	templates  map[string]string
}

func (s *injectFlags) add(cmd *cobra.Command) {
	f := cmd.Flags()
	f.StringVarP(&s.options.Revision, "revision", "r", "", `control plane revision (default "default")`)
	f.StringVar(&s.meshConfig, "meshConfigFile", "", "file with the MeshConfig (the key mesh of ConfigMap istio); Istio's defaults without it")
	f.StringVar(&s.options.ProxyImage, "proxy-image", "", "Envoy image (default "+webhook.DefaultProxyImage+")")
	f.StringVar((*string)(&s.options.StartGate), "start-gate", string(webhook.GateProbe), "what holds a pod's containers back until its proxy is ready: probe, or hook (every node must be annotated weft.dev/start-gate: hook by its agent)")
	_ = cmd.RegisterFlagCompletionFunc("start-gate", cobra.FixedCompletions([]string{string(webhook.GateProbe), string(webhook.GateHook)}, cobra.ShellCompDirectiveNoFileComp)) // fails only when the flag is unknown or registered twice
	f.StringVar(&s.options.ClusterDomain, "cluster-domain", "", `DNS suffix of services (default "cluster.local")`)
	f.StringVar(&s.options.TrustDomain, "trust-domain", "", `trust domain (default "cluster.local")`)
	f.StringVar(&s.options.Network, "network", "", "network of the cluster, for meshes over several networks")
	f.StringToStringVar(&s.templates, "template", nil, "own injection template, as NAME=FILE; may be repeated")
}

func (s *injectFlags) injector() (*webhook.Injector, *meshconfig.MeshConfig, error) {
	config := mesh.DefaultMeshConfig()
	if s.meshConfig != "" {
		text, err := os.ReadFile(s.meshConfig)
		if err != nil {
			return nil, nil, err
		}
		if config, _, err = mesh.ParseMeshConfig(string(text)); err != nil {
			return nil, nil, fmt.Errorf("%s: %w", s.meshConfig, err)
		}
	}
	for name, file := range s.templates {
		text, err := os.ReadFile(file)
		if err != nil {
			return nil, nil, fmt.Errorf("--template %s: %w", strings.TrimSpace(name), err)
		}
		if s.options.Templates == nil {
			s.options.Templates = map[string][]byte{}
		}
		s.options.Templates[name] = text
	}
	in, err := webhook.NewInjector(s.options)
	return in, config, err
}
