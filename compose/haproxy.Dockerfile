# HAProxy of Debian's packages, for machines that can pull no image.
ARG BASE=gatehouse-haproxy-base:local
FROM ${BASE}
USER 65532:65532
STOPSIGNAL SIGUSR1
ENTRYPOINT ["/usr/sbin/haproxy", "-W", "-db", "-f", "/usr/local/etc/haproxy/haproxy.cfg"]
