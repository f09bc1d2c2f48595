// Package identity says who somebody is: by the secret of a token, or by a certificate of the server's own authority.
//
// The authority (Authority) signs the certificates of the hosts and of the server itself. Its key is a file; whoever has
// it can be any host. A host keeps its key and its certificate in a directory (Member). Those who call a server know its
// authority by a fingerprint that tokens carry (Pin), so that also the first contact is with the right one.
//
// The package decides nothing about what somebody may do, or whether a host is still welcome.
package identity
