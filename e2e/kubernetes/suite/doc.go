// Command suite is `make e2e`: the scenarios of package e2e and the tests of the node agent on real clusters.
//
// On a machine with Docker the clusters are kind's; else they are native nodes (package node), which need root. For each cluster it
// builds what is missing, brings it up, runs the node agent's tests on it as it is, installs the mesh with `weft install`, runs the scenarios,
// uninstalls, and compares the node's rules with those of before. Whatever happens, the cluster is taken down; when something
// failed, its logs are in a directory that is named. Open main.go for the plan, run.go for the steps on one cluster.
package main
