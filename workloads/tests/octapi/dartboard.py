"""Like OctaPi's dartboard: it asks for its numbers, keeps all jobs in a list, and passes the arguments of an old dispy."""

import random
import socket

import dispy


def throw(seed, points):
    import random

    random.seed(seed)
    inside = 0
    for _ in range(points):
        x, y = random.random(), random.random()
        inside += x * x + y * y <= 1
    print("seed", seed)
    return seed, inside


points, count = int(input("Points per job ")), int(input("Jobs "))
probe = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
probe.connect(("127.0.0.1", 80))
cluster = dispy.JobCluster(throw, ip_addr=probe.getsockname()[0], nodes="192.168.1.\\*")  # the backslash is OctaPi's
jobs = []
for number in range(1, count + 1):
    job = cluster.submit(random.randint(0, 65535), points)
    job.id = number
    jobs.append(job)
cluster.wait()
total = 0
for job in jobs:
    seed, inside = job()
    assert job.stdout == f"seed {seed}\n" and job.status == dispy.DispyJob.Finished
    total += inside
print(f"pi is about {4 * total / (points * count)}")
print([(job.id, *job.result) for job in jobs])
cluster.print_status()
cluster.close()
