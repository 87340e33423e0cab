package cni

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"

	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/types"

	"github.com/weft-mesh/weft/redirect"
)

// Add redirects the pod if it is injected, and prints the previous plugin's result as it came (CNI spec 1.1 section 4, ADD).
func Add(args *skel.CmdArgs) error {
	conf, err := ParseConf(args.StdinData)
	if err != nil {
		return err
	}
	p := parsePod(args.Args)
	spec, injected, err := decide(conf, p, args)
	if err != nil {
		return fail(codeOf(err, CodeUnknownPod), p, err)
	}
	if injected {
		// Remembered first: should this process die in between, DEL knows that there may be something to undo.
		a := attachment{Container: args.ContainerID, Interface: args.IfName, NetNS: args.Netns, Inode: inode(args.Netns), Pod: p.String(), Spec: spec.Encode()}
		if err := a.save(conf); err != nil {
			return fail(types.ErrIOFailure, p, err)
		}
		if err := redirect.InNetNS(args.Netns, func() error { return conf.backend().Apply(spec) }); err != nil {
			return fail(CodeKernel, p, errors.Join(fmt.Errorf("redirect traffic to the sidecar: %w", err), a.forget(conf)))
		}
		if spec.Gate != 0 && conf.AgentSocket != "" {
			q := p.ask(args)
			q.Gate = spec.Gate
			if err := tellGate(conf.AgentSocket, q); err != nil {
				fmt.Fprintln(os.Stderr, "weft-cni:", err)
			}
		}
	}
	return printResult(conf)
}

// decide says whether a pod is to be redirected, and how. An error means that nobody knows.
func decide(conf Conf, p pod, args *skel.CmdArgs) (spec redirect.Spec, injected bool, err error) {
	if p.name == "" || conf.excludes(p.namespace) {
		// Not Kubernetes (the same conflist may serve podman), or none of our business.
		return spec, false, nil
	}
	all, known, err := conf.annotations()
	if err != nil {
		return spec, false, err
	}
	text, injected := all[redirect.Annotation]
	if !known {
		if conf.AgentSocket == "" {
			return spec, false, fmt.Errorf("cannot tell whether it is injected, because the container runtime passed no pod annotations: "+
				`let the weft-cni entry of conflist %q have "capabilities": {%q: true} (containerd and CRI-O understand it), or set agentSocket, or add namespace %s to excludeNamespaces`,
				conf.Name, CapabilityAnnotations, p.namespace)
		}
		if text, injected, err = askAgent(conf.AgentSocket, p.ask(args)); err != nil {
			return spec, false, err
		}
	}
	if !injected {
		return spec, false, nil
	}
	if spec, err = redirect.Decode(text); err != nil {
		return spec, false, types.NewError(CodeBadAnnotation, err.Error(), "")
	}
	return spec, true, nil
}

// ask is a question about the pod to the node agent.
func (p pod) ask(args *skel.CmdArgs) agentRequest {
	return agentRequest{Namespace: p.namespace, Name: p.name, UID: p.uid, ContainerID: args.ContainerID, NetNS: args.Netns}
}

// printResult writes the previous result byte for byte. Without one (the plugin runs alone, as Multus may do) the result is empty: this plugin makes
// no interface.
func printResult(conf Conf) error {
	result := []byte(conf.PrevResult)
	if len(result) == 0 {
		var err error
		if result, err = json.Marshal(struct {
			CNIVersion string `json:"cniVersion"`
		}{conf.CNIVersion}); err != nil {
			return err
		}
	}
	_, err := os.Stdout.Write(append(bytes.Clone(result), '\n'))
	return err
}
