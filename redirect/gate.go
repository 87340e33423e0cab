package redirect

// This file is the start gate (Spec.Gate). Kubelet's hook asks once, at PortProof, and takes a refusal for a failure of the container that it
// has just started. So a pod that is held back by it refuses nobody at PortProof: the request waits for who can answer it.

// gate lets who listens on PortProof inside the pod have what arrives there: the node agent, which answers when the proxy is ready. In TPROXY
// mode later packets pass here too, and are recognised by the socket that accepted the connection. Those that the proxy accepted then match as
// well with iptables, which cannot tell; they find their socket without help, as their destination is the pod's own address.
func gate(s Spec, c *chain) {
	if s.Gate != 0 {
		c.add("start gate: who listens there answers", leave(), tcp(PortProof), local(), listener())
	}
}

// refusal drops what the kernel says while nobody listens. Who asked is not answered, so its kernel asks again, one second later at first.
// Connection tracking forgets a connection whose only answer is a reset, also when that is dropped here: each attempt is decided anew. Nobody
// else loses a reset: not who aborts a connection that was established, not a process of the pod that calls PortProof elsewhere.
func refusal() chain {
	c := chain{name: chainRefusal, table: "mangle", kind: "filter", hook: "output", priority: prioMangle}
	c.add("start gate: silence instead of a refusal, until somebody listens", drop(), not(out("lo")), reset(), not(original()), originalTo(PortProof), not(assured()))
	return c
}
