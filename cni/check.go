package cni

import (
	"errors"
	"fmt"
	"strings"

	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/types"

	"github.com/weft-mesh/weft/redirect"
)

// Check reads the pod's rules back from the kernel and fails when they are not what ADD made of the Spec (CNI spec 1.1 section 4, CHECK). A pod that
// ADD let pass has nothing to check.
func Check(args *skel.CmdArgs) error {
	conf, err := ParseConf(args.StdinData)
	if err != nil {
		return err
	}
	p := parsePod(args.Args)
	spec, injected, err := remembered(conf, p, args)
	if err != nil {
		return fail(codeOf(err, types.ErrIOFailure), p, err)
	}
	if !injected {
		return nil
	}
	var drift []string
	if err := redirect.InNetNS(args.Netns, func() (err error) {
		drift, err = conf.backend().Verify(spec)
		return err
	}); err != nil {
		return fail(CodeKernel, p, fmt.Errorf("read the redirect rules: %w", err))
	}
	if len(drift) > 0 {
		return fail(CodeDrift, p, errors.New("the redirect rules are not what they should be: "+shortened(drift)))
	}
	return nil
}

// remembered is the Spec that ADD applied. Should its record be lost, the annotation says it again.
func remembered(conf Conf, p pod, args *skel.CmdArgs) (redirect.Spec, bool, error) {
	a, ok, err := load(conf, args.ContainerID, args.IfName)
	if err != nil {
		return redirect.Spec{}, false, err
	}
	if ok {
		spec, err := redirect.Decode(a.Spec)
		return spec, err == nil, err
	}
	all, _, err := conf.annotations()
	if err != nil {
		return redirect.Spec{}, false, err
	}
	if text, injected := all[redirect.Annotation]; injected && p.name != "" && !conf.excludes(p.namespace) {
		spec, err := redirect.Decode(text)
		return spec, err == nil, err
	}
	return redirect.Spec{}, false, nil
}

// shortened joins a list for one line of an event, which holds about a thousand characters.
func shortened(list []string) string {
	const most = 4
	if len(list) > most {
		return fmt.Sprintf("%s; and %d more", strings.Join(list[:most], "; "), len(list)-most)
	}
	return strings.Join(list, "; ")
}
